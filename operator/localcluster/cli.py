"""`pdserve local`: a Kubernetes cluster on this machine, for trying things out."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from localcluster import clusters, devices, programs
from localcluster.agent.host import AgentSettings
from localcluster.cli_status import print_status
from localcluster.cluster import LocalCluster
from localcluster.config import load_config, read_document
from localcluster.controlplane import ControlPlaneSettings
from localcluster.errors import LocalError
from localcluster.kind import KindCluster, KindPlan
from localcluster.kindconfig import kind_document
from localcluster.kindimages import DEFAULT_IMAGES, built_images
from localcluster.paths import DEFAULT_NAME, checkout
from localcluster.plan import ClusterPlan
from pdserve.kube.connect import ConnectError, connect
from pdserve.kube.errors import KubeError

CONFIG = "kind-config.yaml"
RESOURCE = "huawei.com/Ascend910"
DEVICES = 8

_EXAMPLES = """examples:
  pdserve local up                                  process nodes: no root, no containers
  pdserve local up --nodes kind --name real         real kubelets, in containers of a Docker engine
  pdserve local up --name second --config examples/local/nodes-8.yaml
  export KUBECONFIG=$(pdserve local status --kubeconfig)
  pdserve local status --name real -o json
  pdserve local devices --kubeconfig ~/.kube/config --devices 4
  pdserve local devices --name real --node real-worker2 --unhealthy 3
  pdserve local down --name real
"""


def add_parser(commands: Any) -> None:
    """Add `local` to the command line; its `run` returns the exit status."""
    parser = commands.add_parser(
        "local",
        help="a Kubernetes cluster on this machine: of processes, or of containers (kind)",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    up = actions.add_parser("up", help="start a cluster; brings a running one up to date")
    _add_up(up)
    find = actions.add_parser(
        "programs", help="find or get what clusters run (Kubernetes, Helm, Prometheus)"
    )
    find.add_argument("--kind", action="store_true", help="also the kind program")
    find.set_defaults(run=_programs)
    status = actions.add_parser("status", help="what runs, where, and how to reach it")
    status.add_argument("--kubeconfig", action="store_true", help="print only the kubeconfig path")
    status.add_argument("-o", "--output", choices=["text", "json"], default="text")
    down = actions.add_parser("down", help="end a cluster and remove all it left")
    give = actions.add_parser(
        "devices", help="give workers of any cluster fake devices, or mark some unhealthy"
    )
    _add_devices(give)
    for action, run in ((up, _up), (status, _status), (down, _down), (give, _devices)):
        action.add_argument(
            "--name", default=DEFAULT_NAME, help="which cluster (default %(default)s)"
        )
        action.add_argument("--state-dir", type=Path, help="where it keeps its state")
        action.set_defaults(run=_guarded(run))


def _add_up(up: argparse.ArgumentParser) -> None:
    up.add_argument(
        "--nodes",
        choices=["process", "kind"],
        default="process",
        help="process: pods are processes of this machine (default); "
        "kind: nodes are containers of a Docker engine",
    )
    up.add_argument(
        "--config",
        type=Path,
        help=f"nodes and labels, in kind's format (default: {CONFIG} here or in the checkout)",
    )
    _add_resource(up)
    up.add_argument(
        "--node-grace",
        type=float,
        default=ControlPlaneSettings().node_grace,
        metavar="SECONDS",
        help="silence until a node is NotReady (default %(default)g)",
    )
    up.add_argument(
        "--image",
        action="append",
        metavar="NAME",
        help="kind: an image to load into the nodes; may be repeated (default: pdserve's own "
        "of this version, and Prometheus)",
    )
    up.add_argument(
        "--images", type=Path, metavar="FILE", help="kind: load what `make images` wrote there"
    )


def _add_devices(give: argparse.ArgumentParser) -> None:
    give.add_argument(
        "--kubeconfig", help="which cluster (default: of --name, if it runs, else $KUBECONFIG)"
    )
    _add_resource(give)
    give.add_argument("--node", help="mark devices of this node, and do nothing else")
    for flag in ("--unhealthy", "--healthy"):
        give.add_argument(
            flag, type=_ids, default=[], metavar="IDS", help="device ids of --node, like 0,3"
        )


def _add_resource(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resource", default=RESOURCE, help="extended resource of devices (default %(default)s)"
    )
    parser.add_argument(
        "--devices", type=int, default=DEVICES, help="devices per worker (default %(default)s)"
    )


def _guarded(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    def guarded(arguments: argparse.Namespace) -> int:
        try:
            return run(arguments)
        except (LocalError, KubeError, ConnectError) as error:
            print(f"pdserve local: {error}", file=sys.stderr)
            return 1

    return guarded


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _programs(arguments: argparse.Namespace) -> int:
    return programs.main(with_kind=arguments.kind)


# --- up and down -----------------------------------------------------------------------------


def _up(arguments: argparse.Namespace) -> int:
    config = arguments.config or _default_config()
    start = _up_kind if arguments.nodes == "kind" else _up_process
    cluster = start(arguments, config)
    print(f"export KUBECONFIG={cluster.kubeconfig}")
    return 0


def _up_process(arguments: argparse.Namespace, path: Path) -> LocalCluster:
    if arguments.image or arguments.images:
        raise LocalError("--image, --images: process nodes have no images (--nodes kind has)")
    clusters.refuse_other(arguments.name, arguments.state_dir, LocalCluster)
    config = load_config(path, resource=arguments.resource, devices=arguments.devices)
    # A Lease is renewed five times within the grace, as between kubelet and Kubernetes' default.
    agent = AgentSettings(lease_period=arguments.node_grace / 5)
    plane = ControlPlaneSettings(
        node_grace=arguments.node_grace, node_check=min(5.0, arguments.node_grace / 5)
    )
    cluster = LocalCluster(arguments.name, arguments.state_dir)
    cluster.up(ClusterPlan(cluster.name, config, plane, agent), _say)
    return cluster


def _up_kind(arguments: argparse.Namespace, path: Path) -> KindCluster:
    clusters.refuse_other(arguments.name, arguments.state_dir, KindCluster)
    # Read as process nodes would be: mistakes are named before anything is started.
    load_config(path, resource=arguments.resource, devices=arguments.devices)
    cluster = KindCluster(arguments.name, arguments.state_dir)
    built = built_images(arguments.images) if arguments.images else ()
    plan = KindPlan(
        document=kind_document(read_document(path), node_grace=arguments.node_grace),
        resource=arguments.resource,
        devices=arguments.devices,
        images=(*built, *(arguments.image or ())) or DEFAULT_IMAGES,
    )
    cluster.up(plan, _say)
    return cluster


def _down(arguments: argparse.Namespace) -> int:
    cluster = clusters.find(arguments.name, arguments.state_dir)
    ended = cluster is not None and cluster.down()
    _say(f"cluster {arguments.name!r}: {'ended' if ended else 'there was none'}")
    return 0


# --- status ----------------------------------------------------------------------------------


def _status(arguments: argparse.Namespace) -> int:
    cluster = clusters.find(arguments.name, arguments.state_dir)
    if cluster is None:
        _say(f"there is no cluster {arguments.name!r}")
        return 1
    if arguments.kubeconfig:
        status = cluster.status()
        if not status.running:
            _say(f"cluster {cluster.name!r} is not running: {status.problem}")
            return 1
        print(cluster.kubeconfig)
        return 0
    return print_status(cluster, as_json=arguments.output == "json")


# --- devices ---------------------------------------------------------------------------------


def _devices(arguments: argparse.Namespace) -> int:
    marks = bool(arguments.unhealthy or arguments.healthy)
    if marks != bool(arguments.node):
        raise LocalError("--node NAME goes with --unhealthy IDS or --healthy IDS")
    return asyncio.run(_set_health(arguments) if marks else _set_up(arguments))


async def _set_up(arguments: argparse.Namespace) -> int:
    client = await connect(_kubeconfig(arguments), user_agent="pdserve-local")
    try:
        given = await devices.set_up(client, arguments.resource, arguments.devices)
    finally:
        await client.close()
    for node in given:
        what = "devices of its own, left alone" if node.own else "fake devices"
        print(f"{node.node:32} {node.devices:3} {node.resource}: {what}")
    return 0


async def _set_health(arguments: argparse.Namespace) -> int:
    kubeconfig = _kubeconfig(arguments)
    cluster = clusters.find(arguments.name, arguments.state_dir)
    if isinstance(cluster, LocalCluster) and kubeconfig == str(cluster.kubeconfig):
        # The agent holds the devices of process nodes; what others write, it writes over.
        for device in arguments.unhealthy:
            cluster.admin.device(arguments.node, device, healthy=False)
        for device in arguments.healthy:
            cluster.admin.device(arguments.node, device, healthy=True)
        marked = cluster.admin.status()["nodes"][arguments.node]["unhealthy"]
    else:
        client = await connect(kubeconfig, user_agent="pdserve-local")
        try:
            marked = sorted(
                await devices.set_health(
                    client, arguments.node, arguments.unhealthy, arguments.healthy
                )
            )
        finally:
            await client.close()
    print(f"{arguments.node}: unhealthy devices: {', '.join(map(str, marked)) or 'none'}")
    return 0


def _kubeconfig(arguments: argparse.Namespace) -> str | None:
    if arguments.kubeconfig:
        return str(Path(arguments.kubeconfig).expanduser())
    cluster = clusters.find(arguments.name, arguments.state_dir)
    if cluster is not None and cluster.kubeconfig.is_file():
        return str(cluster.kubeconfig)
    if arguments.name != DEFAULT_NAME or not os.environ.get("KUBECONFIG"):
        raise LocalError(
            f"there is no cluster {arguments.name!r}; say which with --name or --kubeconfig"
        )
    return None


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected ids like 0,3") from error


def _default_config() -> Path:
    here = Path(CONFIG)
    root = checkout()
    if here.is_file() or root is None:
        return here
    return root / CONFIG
