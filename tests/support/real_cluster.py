"""`scenarios.Cluster` on a cluster of real kubelets: any that a kubeconfig leads to, or kind.

Faults need more than an API server: a kind cluster has them (its nodes are containers of this
machine's Docker engine); on any other cluster, tests that ask for one are skipped and say so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from kubernetes import config as kube_config
from tests.support import scenarios as s
from tests.support.kubectl import Kubectl
from tests.support.port_forwards import PortForwards

from pdserve.wire import names

PDSERVE = Path(sys.executable).parent / "pdserve"
NAME = "e2e"
NODE_GRACE = 20
"""Seconds of silence until a node is NotReady: two missed heartbeats of a kubelet."""
PATIENCE = 3.0
"""Containers start slower than processes, and all nodes share this machine."""


class RealCluster(Kubectl):
    """A cluster reached by a kubeconfig."""

    nodes = "kubeconfig"
    patience = PATIENCE

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self._api = kube_config.new_client_from_config(str(kubeconfig))
        self._forwards = PortForwards(kubeconfig)

    def close(self) -> None:
        """Close connections; the cluster stays."""
        self._forwards.close()
        self._api.close()

    def get(self, path: str) -> s.Json | None:
        """GET of an API path; None when there is no such object."""
        request = self._api.param_serialize("GET", path, auth_settings=["BearerToken"])
        reply = self._api.call_api(*request, _request_timeout=10)
        body = reply.read()
        if reply.status == 404:
            return None
        assert reply.status == 200, f"{path}: {reply.status} {body!r}"
        answer: s.Json = json.loads(body)
        return answer

    def text(self, path: str) -> str:
        """GET of an API path that answers text."""
        return self.kubectl("get", "--raw", path)

    def url(self, pod: s.Json, port: int = names.PORT_HTTP) -> str:
        """By port forwarding; the answer holds as long as the pod's container runs."""
        meta = pod["metadata"]
        return f"http://127.0.0.1:{self._forwards.port(meta['namespace'], meta['name'], port)}"

    def kill(self, namespace: str, pod: str) -> None:
        """Needs the node."""
        self._unbreakable()

    @contextmanager
    def frozen(self, namespace: str, pod: str) -> Iterator[None]:
        """Needs the node."""
        self._unbreakable()
        yield

    @contextmanager
    def api_frozen(self) -> Iterator[None]:
        """Needs the control plane's node."""
        self._unbreakable()
        yield

    def cut(self, node: str) -> None:
        """Needs the node."""
        self._unbreakable()

    def restore(self, node: str) -> None:
        """Undo `cut`; nothing was cut."""

    def stop(self, node: str) -> None:
        """Needs the node."""
        self._unbreakable()

    def start(self, node: str) -> None:
        """Undo `stop`; nothing was stopped."""

    def device(self, node: str, device: int, *, healthy: bool) -> None:
        """Needs the node's device plugin."""
        self._unbreakable()

    def _unbreakable(self) -> NoReturn:
        pytest.skip("nodes of this cluster cannot be broken from here (kind's can)")


class KindCluster(RealCluster):
    """A kind cluster: its nodes are containers, and can be broken."""

    nodes = "kind"

    def kill(self, namespace: str, pod: str) -> None:
        """SIGKILL the main process of the pod's first container."""
        self._signal(namespace, pod, "KILL", main=True)

    @contextmanager
    def frozen(self, namespace: str, pod: str) -> Iterator[None]:
        """All processes of the pod's first container stand still."""
        self._signal(namespace, pod, "STOP")
        try:
            yield
        finally:
            self._signal(namespace, pod, "CONT")

    @contextmanager
    def api_frozen(self) -> Iterator[None]:
        """The API server stands still."""
        (node,) = self._control_planes()
        self.in_node(node, "pkill", "-STOP", "kube-apiserver")
        try:
            yield
        finally:
            self.in_node(node, "pkill", "-CONT", "kube-apiserver")

    def cut(self, node: str) -> None:
        """Partition: nothing passes between this node (and its pods) and any other."""
        self.in_node(node, "sh", "-c", _CUT)

    def restore(self, node: str) -> None:
        """Undo `cut`."""
        self.in_node(node, "sh", "-c", _RESTORE)

    def stop(self, node: str) -> None:
        """The node goes down, its containers with it."""
        docker("stop", "--time", "1", node)

    def start(self, node: str) -> None:
        """Undo `stop`; returns when pods there would have a network again.

        Ready is the word of a node's kubelet. Routes to other nodes' pods, and to Services, are
        made by daemons that start anew, and wait ten seconds and more when their first try fails.
        """
        docker("start", node)
        s.until(f"{node} is Ready", lambda: s.is_ready(self.get(f"/api/v1/nodes/{node}")))
        s.until(f"{node} reaches the cluster's DNS by its Service", lambda: self._reaches_dns(node))

    def _reaches_dns(self, node: str) -> bool:
        service = self.get("/api/v1/namespaces/kube-system/services/kube-dns")
        assert service is not None
        metrics = f"http://{service['spec']['clusterIP']}:9153/metrics"
        said = self.in_node(node, "sh", "-c", f"curl --silent --max-time 2 {metrics} || true")
        return "coredns_" in said

    def give_devices(self) -> None:
        """Every worker's fake devices, as when the cluster was made."""
        run([PDSERVE, "local", "devices", "--kubeconfig", self.kubeconfig])

    def device(self, node: str, device: int, *, healthy: bool) -> None:
        """Mark a device unhealthy, or healthy again."""
        which = "--healthy" if healthy else "--unhealthy"
        run([PDSERVE, "local", "devices", "--kubeconfig", self.kubeconfig, "--node", node,
             which, str(device)])  # fmt: skip

    def in_node(self, node: str, *command: str) -> str:
        """Run a command in a node."""
        return docker("exec", node, *command)

    def _control_planes(self) -> list[str]:
        path = "/api/v1/nodes?labelSelector=node-role.kubernetes.io/control-plane"
        return [s.name_of(node) for node in (self.get(path) or {})["items"]]

    def _signal(self, namespace: str, pod: str, signal: str, *, main: bool = False) -> None:
        obj = self.get(f"/api/v1/namespaces/{namespace}/pods/{pod}")
        assert obj is not None, f"no pod {namespace}/{pod}"
        container = obj["status"]["containerStatuses"][0]["containerID"].rpartition("/")[2]
        script = _SIGNAL.format(container=container, signal=signal, main=int(main))
        self.in_node(obj["spec"]["nodeName"], "sh", "-c", script)


# Found by control group: `crictl` is not in every node image. Process 1 of the container's own
# process namespace is its main process.
_SIGNAL = """
found=
for group in $(grep -l {container} /proc/[0-9]*/cgroup 2> /dev/null); do
  process=$(dirname $group)
  if [ {main} = 0 ] || [ "$(sed -n 's/^NSpid:.*\\t//p' $process/status)" = 1 ]; then
    kill -{signal} $(basename $process) && found=yes
  fi
done
[ -n "$found" ]
"""
_CUT = """
nft -f - << RULES
table inet pdserve_cut {
  chain in { type filter hook prerouting priority -400; iifname "eth0" drop; }
  chain out { type filter hook postrouting priority 400; oifname "eth0" drop; }
}
RULES
"""
_RESTORE = "! nft list table inet pdserve_cut > /dev/null 2>&1 || nft delete table inet pdserve_cut"


def docker(*args: str) -> str:
    """Output of docker; fails with what it said."""
    return run(["docker", *args])


def run(command: list[str | Path]) -> str:
    """Output of a command; fails with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stderr}{done.stdout}"
    return done.stdout


@contextmanager
def real_cluster(nodes: str, config: pytest.Config) -> Iterator[RealCluster]:
    """The cluster of $KUBECONFIG, or a kind cluster made for this run (`--keep` leaves it)."""
    if nodes == "kubeconfig":
        given = os.environ.get("KUBECONFIG", "")
        if not given or not Path(given).is_file():
            pytest.exit("--nodes kubeconfig: set KUBECONFIG to one file", 2)
        found = RealCluster(Path(given))
        try:
            yield found
        finally:
            found.close()
        return
    try:
        with _shown(config):
            run_shown(PDSERVE, "local", "up", "--nodes", "kind", "--name", NAME,
                      "--node-grace", str(NODE_GRACE))  # fmt: skip
        kubeconfig = run([PDSERVE, "local", "status", "--name", NAME, "--kubeconfig"]).strip()
        kind = KindCluster(Path(kubeconfig))
        try:
            yield kind
        finally:
            kind.close()
    finally:
        if not config.getoption("--keep"):
            with _shown(config):
                run_shown(PDSERVE, "local", "down", "--name", NAME)


@contextmanager
def _shown(config: pytest.Config) -> Iterator[None]:
    """What takes minutes shows its progress, whatever pytest captures."""
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print()
        yield


def run_shown(*command: str | Path) -> None:
    """A command that speaks to the terminal; fails with its status."""
    done = subprocess.run(command, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: exit status {done.returncode}"
