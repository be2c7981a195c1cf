"""Whether an engine has room for another kind cluster's nodes: inotify instances.

Linux limits them per user (`fs.inotify.max_user_instances`, often 128), and the nodes of all kind
clusters count for root. A node that gets none does not start, and kind fails after minutes without
naming the cause. So this module first counts what the running nodes use.

It imports nothing but the standard library and `docker`, so that `make e2e` can run it first:
`python -m localcluster.kindroom NODES NAME`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from localcluster import docker
from localcluster.commands import CommandError, answer
from localcluster.errors import LocalError

LIMIT = Path("/proc/sys/fs/inotify/max_user_instances")
PER_NODE = 25
"""Instances that a node may need: systemd, containerd, kubelet, kube-proxy and some pods. Seen:
128 are enough for five nodes, and not for ten."""
ADVISED = 512
"""What kind's own documentation advises."""
RAISE = f"sysctl fs.inotify.max_user_instances={ADVISED}"
_SECONDS = 4.0
_ASK = f"cat {LIMIT}; find /proc/[0-9]*/fd -lname anon_inode:inotify 2> /dev/null | wc -l"


def check(nodes: int, name: str) -> None:
    """Whether `nodes` more have room beside the nodes of other clusters than `name`.

    A first cluster always has: there is no node to ask. A cluster whose neighbours give no answer
    is not refused.

    Raises:
        LocalError: they have no room; says which clusters run and what to do.
    """
    others = {cluster: on for cluster, on in docker.running_nodes().items() if cluster != name}
    with ThreadPoolExecutor(max_workers=8) as pool:
        answers = list(pool.map(_instances, [node for on in others.values() for node in on]))
    found = [instances for instances in answers if instances is not None]
    if not found or len(found) < len(answers):
        return
    limit = min(limit for limit, _ in found)
    used = sum(used for _, used in found)
    if used + nodes * PER_NODE > limit:
        ending = "; ".join(f"kind delete cluster --name {cluster}" for cluster in sorted(others))
        raise LocalError(
            f"no room for {nodes} kind nodes: they need up to {nodes * PER_NODE} inotify instances,"
            f" and {len(found)} nodes that run use {used} of {limit}. "
            f"End those ({ending}), or raise the limit: {RAISE}"
        )


def hint() -> str:
    """What to add to the message of a kubelet that did not start; empty where it is not that."""
    try:
        limit = int(LIMIT.read_text())
    except (OSError, ValueError):  # no such limit, or no Linux
        return ""
    if limit >= ADVISED:
        return ""
    return (
        f"\nOften the cause: this machine allows {limit} inotify instances, which suffice for one "
        f"cluster of five nodes. End others (`kind get clusters`), or raise the limit: {RAISE}"
    )


def _instances(node: str) -> tuple[int, int] | None:
    """Limit of the node's machine and what the node uses of it; None where it does not say."""
    try:
        limit, used = answer(["docker", "exec", node, "sh", "-c", _ASK], seconds=_SECONDS).split()
        return int(limit), int(used)
    except (CommandError, ValueError):
        return None


def main(argv: Sequence[str]) -> int:
    """Check whether the machine has room for `NODES` more nodes of kind cluster `NAME`.

    Returns the exit status: 0, or 1 and why on standard error when there is no room.
    """
    nodes, name = argv
    try:
        docker.check()
        check(int(nodes), name)
    except LocalError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
