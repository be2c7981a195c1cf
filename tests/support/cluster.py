"""Real control planes and clusters for tests, and a short way to talk to them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from tests.support.kubectl import Kubectl
from tests.support.rest import Rest

from localcluster import processes
from localcluster.agent.host import AgentSettings
from localcluster.cluster import LocalCluster
from localcluster.config import load_config
from localcluster.controlplane import Components, ControlPlane, ControlPlaneSettings
from localcluster.plan import ClusterPlan

ROOT = Path(__file__).resolve().parents[2]
NODES_8 = ROOT / "examples" / "local" / "nodes-8.yaml"

# Shorter than Kubernetes' defaults so that tests of silence and restarts end soon, long enough
# for a busy machine.
FAST_CONTROL_PLANE = ControlPlaneSettings(node_grace=10.0, node_check=1.0)
FAST_AGENT = AgentSettings(lease_period=1.5, volume_refresh=0.5, restart_base=2.0, retry=0.3)

SECONDS = 60.0
"""To wait for anything: generous, because a busy machine starts and ends processes slowly."""

Json = dict[str, Any]


@contextmanager
def running_control_plane(
    state_dir: Path,
    components: Components = Components.API,
    settings: ControlPlaneSettings | None = None,
) -> Iterator[ControlPlane]:
    """A started control plane, stopped at the end whatever happens."""
    plane = ControlPlane(state_dir, components=components, settings=settings)
    plane.start(print)
    try:
        yield plane
    finally:
        plane.stop()


@contextmanager
def running_cluster(
    state_dir: Path,
    config: Path = NODES_8,
    *,
    control_plane: ControlPlaneSettings = FAST_CONTROL_PLANE,
    agent: AgentSettings = FAST_AGENT,
    name: str = "test",
) -> Iterator[ClusterAccess]:
    """A whole cluster that also ends when the test process does."""
    cluster = LocalCluster(name, state_dir)
    nodes = load_config(config, resource="huawei.com/Ascend910", devices=8)
    cluster.up(ClusterPlan(name, nodes, control_plane, agent), print, owned=True)
    try:
        yield ClusterAccess(cluster)
    finally:
        cluster.down()


def eventually(what: str, check: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """Poll until `check` answers something true, and give that back; fail after `seconds`."""
    deadline = processes.Deadline(seconds)
    while not (answer := check()):
        assert not deadline.passed, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return answer


class ClusterAccess(Kubectl):
    """What tests do with a cluster: apply YAML, read objects, wait for them, break things."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.local = cluster
        self.admin = cluster.admin
        self.kubeconfig = cluster.kubeconfig
        config = yaml.safe_load(cluster.kubeconfig.read_text())
        self._rest = Rest(
            config["clusters"][0]["cluster"]["server"],
            config["users"][0]["user"]["token"],
            cluster.state_dir / "pki" / "apiserver.crt",
        )

    def get(self, path: str) -> Json | None:
        """GET of an API path; None when there is no such object."""
        answer = self._rest.get(path)
        if answer.code == 404:
            return None
        assert answer.code == 200, f"{path}: {answer}"
        return answer.body

    def pod(self, name: str, namespace: str = "default") -> Json | None:
        """A pod, or None."""
        return self.get(f"/api/v1/namespaces/{namespace}/pods/{name}")

    def node(self, name: str) -> Json:
        """A node that exists."""
        node = self.get(f"/api/v1/nodes/{name}")
        assert node is not None, f"no node {name}"
        return node

    def wait_pod(
        self,
        name: str,
        check: Callable[[Json], Any],
        namespace: str = "default",
        seconds: float = SECONDS,
    ) -> Json:
        """The pod once `check` holds of it; on failure its status is shown."""
        last: Json | None = None

        def now() -> Json | None:
            nonlocal last
            last = self.pod(name, namespace)
            return last if last is not None and check(last) else None

        try:
            found: Json = eventually(f"pod {namespace}/{name}", now, seconds)
        except AssertionError as error:
            status = json.dumps((last or {}).get("status"), indent=1)
            raise AssertionError(f"{error}\n{status}") from error
        return found

    def wait_log(self, name: str, text: str) -> str:
        """The log of a pod that was started, once `text` is in it; on failure it is shown.

        Without a probe a pod is ready before its program has said anything.
        """
        log = ""

        def now() -> bool:
            nonlocal log
            log = self.kubectl("logs", name)
            return text in log

        try:
            eventually(f"pod {name} says {text!r}", now)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{log}") from error
        return log


def condition(obj: Json, kind: str) -> Json:
    """A condition of an object, `{}` when it has none of that type."""
    conditions = (obj.get("status") or {}).get("conditions") or ()
    return next((c for c in conditions if c["type"] == kind), {})


def is_ready(obj: Json) -> bool:
    """True when condition Ready is True."""
    return bool(condition(obj, "Ready").get("status") == "True")


def container(pod: Json, name: str = "main") -> Json:
    """Status of one container of a pod; `{}` before there is one."""
    status = pod.get("status") or {}
    all_of = [*status.get("containerStatuses", ()), *status.get("initContainerStatuses", ())]
    return next((c for c in all_of if c["name"] == name), {})
