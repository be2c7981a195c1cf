"""Local clusters: idempotent up, down without a trace, node faults, a real Deployment."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.cluster import (
    FAST_AGENT,
    FAST_CONTROL_PLANE,
    ClusterAccess,
    condition,
    container,
    eventually,
    is_ready,
)

from localcluster import processes
from localcluster.agent.addresses import ClusterNumber
from localcluster.cluster import LocalCluster
from localcluster.config import ClusterConfig, NodeSpec
from localcluster.errors import LocalError
from localcluster.plan import ClusterPlan

pytestmark = pytest.mark.cluster
own_cluster = pytest.mark.timeout(400)
"""For tests that start clusters themselves: a fixture would have no limit."""

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: %(name)s}
spec:
  replicas: 3
  selector: {matchLabels: {app: %(name)s}}
  template:
    metadata: {labels: {app: %(name)s}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{operator: Exists, effect: NoExecute}]
      containers:
      - name: main
        image: pdserve/engine
        command: [sh, -c, "sleep 1000 & exec sleep 1000"]
"""


def small_plan(name: str, nodes: int = 1) -> ClusterPlan:
    specs = tuple(NodeSpec(f"{name}-{i}", {}, 2) for i in range(nodes))
    return ClusterPlan(name, ClusterConfig(specs), FAST_CONTROL_PLANE, FAST_AGENT)


def steadfast(name: str, node: str) -> dict[str, Any]:
    """A pod pinned to a node that it does not leave when the node is NotReady."""
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 1,
            "tolerations": [{"operator": "Exists", "effect": "NoExecute"}],
            "containers": [{"name": "main", "image": "pdserve/engine",
                            "command": ["sleep", "1000"]}],
        },
    }  # fmt: skip


def test_a_deployment_of_the_real_controller_manager_becomes_ready(cluster: ClusterAccess) -> None:
    cluster.apply(DEPLOYMENT % {"name": "shop"})
    path = "/apis/apps/v1/namespaces/default/deployments/shop"

    def ready(count: int) -> bool:
        return (cluster.get(path) or {})["status"].get("readyReplicas", 0) == count

    eventually("three ready replicas", lambda: ready(3))
    pods = (cluster.get("/api/v1/namespaces/default/pods?labelSelector=app%3Dshop") or {})["items"]
    assert len({p["status"]["podIP"] for p in pods}) == 3
    cluster.kubectl("scale", "deployment/shop", "--replicas=1")
    eventually("one replica", lambda: ready(1))
    cluster.kubectl("delete", "deployment", "shop")
    selector = "/api/v1/namespaces/default/pods?labelSelector=app%3Dshop"
    eventually("no pods", lambda: (cluster.get(selector) or {})["items"] == [])


def test_nodes_carry_labels_devices_and_addresses(cluster: ClusterAccess) -> None:
    node = cluster.node("pdserve-worker3")
    assert node["metadata"]["labels"]["fabric.pdserve.io/leaf"] == "leaf-a2"
    assert node["metadata"]["labels"]["fabric.pdserve.io/rack"] == "rack-a"
    assert node["status"]["capacity"]["huawei.com/Ascend910"] == "8"
    address = node["status"]["addresses"][0]["address"]
    prefix = address.rpartition(".")[0]
    devices = node["metadata"]["annotations"]["pdserve.io/roce-devices"]
    assert f'"ip": "{prefix}.2"' in devices
    assert "pdserve.io/unhealthy-devices" not in node["metadata"]["annotations"]


def test_a_node_cut_off_turns_not_ready_while_its_pods_run_on(cluster: ClusterAccess) -> None:
    node = "pdserve-worker7"
    cluster.apply(steadfast("isolated", node))
    cluster.wait_pod("isolated", is_ready)
    pid = cluster.admin.status()["pods"]["default/isolated"]["pids"]["main"]
    cluster.admin.cut(node)
    try:
        eventually(
            "the node is unknown",
            lambda: condition(cluster.node(node), "Ready")["status"] == "Unknown",
        )
        cluster.kubectl("delete", "pod", "isolated", "--wait=false")
        assert processes.is_alive(pid), "a node that is cut off cannot hear of a deletion"
        assert cluster.pod("isolated") is not None
    finally:
        cluster.admin.restore(node)
    eventually("the node is ready", lambda: is_ready(cluster.node(node)))
    eventually("the deletion is carried out", lambda: cluster.pod("isolated") is None)
    assert not processes.is_alive(pid)


def test_a_node_that_was_down_starts_its_containers_again_elsewhere(
    cluster: ClusterAccess,
) -> None:
    """As seen on kind: the same pod, a restart whose cause is unknown, another address."""
    node, gate = "pdserve-worker5", "example.test/Linked"
    pods: dict[str, dict[str, Any]] = {
        "stays": {"readinessGates": [{"conditionType": gate}]},
        "ends": {"restartPolicy": "Never"},
    }
    for name, fields in pods.items():
        cluster.apply({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {
                "nodeName": node, "terminationGracePeriodSeconds": 1,
                "tolerations": [{"operator": "Exists", "effect": "NoExecute"}], **fields,
                "containers": [{"name": "main", "image": "pdserve/engine",
                                "command": ["sh", "-c", "echo hello; exec sleep 1000"]}],
            },
        })  # fmt: skip
    cluster.wait_pod("ends", is_ready)
    opened = json.dumps({"status": {"conditions": [{"type": gate, "status": "True"}]}})
    cluster.wait_pod("stays", lambda p: container(p).get("ready"))
    cluster.kubectl("patch", "pod", "stays", "--subresource=status", "-p", opened)
    before = cluster.wait_pod("stays", is_ready)
    pid = cluster.admin.status()["pods"]["default/stays"]["pids"]["main"]
    cluster.admin.stop(node)
    try:
        eventually("its processes are gone", lambda: not processes.is_alive(pid))
        eventually("the pod is not ready", lambda: not is_ready(cluster.pod("stays") or {}))
        still = cluster.pod("stays") or {}
        assert container(still)["state"].get("running"), "nothing could report otherwise"
        with pytest.raises(LocalError, match="is stopped: start it"):
            cluster.admin.restore(node)
    finally:
        cluster.admin.start(node)
    after = cluster.wait_pod("stays", lambda p: container(p)["restartCount"] == 1 and is_ready(p))
    last = container(after)["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"]) == (255, "Unknown")
    assert condition(after, gate)["status"] == "True", "its controller has to look again"
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"]["podIP"] != before["status"]["podIP"]
    assert after["status"]["podIPs"] == [{"ip": after["status"]["podIP"]}]
    ended = cluster.wait_pod("ends", lambda p: p["status"]["phase"] == "Failed")
    assert container(ended)["state"]["terminated"]["exitCode"] == 255
    assert "podIP" not in ended["status"]
    for name in pods:
        cluster.kubectl("delete", "pod", name, "--wait=false")


def test_a_node_that_is_cut_off_does_not_hear_of_new_pods(cluster: ClusterAccess) -> None:
    node = "pdserve-worker5"
    cluster.admin.cut(node)
    try:
        cluster.apply(steadfast("unheard", node))
        eventually("the agent saw it", lambda: "default/unheard" in cluster.admin.status()["pods"])
        assert cluster.admin.status()["pods"]["default/unheard"]["pids"] == {}
    finally:
        cluster.admin.restore(node)
    cluster.wait_pod("unheard", is_ready)
    cluster.kubectl("delete", "pod", "unheard", "--wait=false")


def test_an_unhealthy_device_leaves_the_allocatable_ones(cluster: ClusterAccess) -> None:
    node, resource = "pdserve-worker6", "huawei.com/Ascend910"
    note = "pdserve.io/unhealthy-devices"
    cluster.admin.device(node, 3, healthy=False)
    try:
        sick = cluster.node(node)
        assert sick["status"]["allocatable"][resource] == "7"
        assert sick["status"]["capacity"][resource] == "8"
        assert sick["metadata"]["annotations"][note] == "3"
    finally:
        cluster.admin.device(node, 3, healthy=True)
    well = cluster.node(node)
    assert well["status"]["allocatable"][resource] == "8"
    assert note not in well["metadata"]["annotations"]


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda a: a.cut("no-such-node"), "expected one of pdserve-worker, pdserve-worker2"),
        (lambda a: a.device("pdserve-worker", 8, healthy=False), "has 0 to 7"),
        (lambda a: a.kill("default", "absent"), "no pod default/absent on these nodes"),
        (lambda a: a._ask("explode"), "one of cut, device, freeze, kill, start, status, stop"),
        (lambda a: a._ask("cut"), "bad request: TypeError"),
    ],
)
def test_faults_that_cannot_be_done_say_why(
    cluster: ClusterAccess, do: object, message: str
) -> None:
    with pytest.raises(LocalError, match=message):
        do(cluster.admin)  # type: ignore[operator]


@own_cluster
def test_up_twice_and_down_leave_what_they_should(tmp_path: Path) -> None:
    local = LocalCluster("twice", tmp_path / "twice")
    lines: list[str] = []
    try:
        local.up(small_plan("twice"), lines.append)
        first = local.status()
        assert first.running
        assert any("control plane ready in" in line for line in lines)
        local.up(small_plan("twice"), lines.append)
        assert lines[-1] == "cluster 'twice' is already running"
        assert local.status().server == first.server
        with pytest.raises(LocalError, match="already runs with another configuration"):
            local.up(small_plan("twice", nodes=2))
        assert first.details is not None
        pids = [p["pid"] for p in first.details["processes"].values()]
        assert len(pids) == 5
        access = ClusterAccess(local)
        access.apply(DEPLOYMENT % {"name": "left"})
        pids += _pids_of_pods(local, 3)
    finally:
        assert local.down()
    assert not (tmp_path / "twice").exists()
    assert [pid for pid in pids if processes.is_alive(pid)] == []
    assert not local.down()
    assert not local.status().running


@own_cluster
def test_sigkill_leaves_no_orphan_and_the_next_up_starts_afresh(tmp_path: Path) -> None:
    local = LocalCluster("killed", tmp_path / "killed")
    try:
        local.up(small_plan("killed"))
        access = ClusterAccess(local)
        access.apply(DEPLOYMENT % {"name": "doomed"})
        pids = _pids_of_pods(local, 3)
        children = eventually("each has a child", lambda: _children_of_each(pids))
        status = local.admin.status()
        pids += children + [p["pid"] for p in status["processes"].values()]
        os.kill(status["processes"]["node agent"]["pid"], signal.SIGKILL)
        eventually("no orphans", lambda: not any(processes.is_alive(p) for p in pids))
        assert not local.status().running
        local.up(small_plan("killed"))
        assert (
            ClusterAccess(local).get("/apis/apps/v1/namespaces/default/deployments/doomed") is None
        )
    finally:
        local.down()


@own_cluster
def test_an_owned_cluster_ends_with_its_owner(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, threading\n"
        "from tests.cluster.test_local_cluster import small_plan\n"
        "from localcluster.cluster import LocalCluster\n"
        "LocalCluster('owned', pathlib.Path(sys.argv[1])).up(small_plan('owned'), owned=True)\n"
        "print('up', flush=True)\n"
        "threading.Event().wait()\n"
    )
    state = tmp_path / "owned"
    owner = subprocess.Popen([sys.executable, "-c", code, str(state)], stdout=subprocess.PIPE)
    local = LocalCluster("owned", state)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        pids = [p["pid"] for p in local.admin.status()["processes"].values()]
    finally:
        owner.kill()
        owner.wait()
    eventually("no orphans", lambda: not any(processes.is_alive(p) for p in pids))
    assert not local.status().running
    local.down()


@own_cluster
def test_a_component_lost_later_ends_the_cluster_and_status_says_which(tmp_path: Path) -> None:
    local = LocalCluster("lost", tmp_path / "lost")
    try:
        local.up(small_plan("lost"))
        os.kill(local.admin.status()["processes"]["kube-scheduler"]["pid"], signal.SIGKILL)
        wanted = "kube-scheduler ended (killed by signal 9"
        eventually("status says which", lambda: wanted in local.status().problem)
        assert not local.status().running
    finally:
        local.down()


@own_cluster
def test_without_namespaces_pods_still_run_and_find_their_volumes(tmp_path: Path) -> None:
    local = LocalCluster("plain", tmp_path / "plain")
    settings = dataclasses.replace(FAST_AGENT, namespaces=False)
    plan = dataclasses.replace(small_plan("plain"), agent=settings)
    ask = (
        "import asyncio, sys, pathlib; from pdserve.kube.connect import connect\n"
        "from pdserve.kube.errors import KubeError; from pdserve.kube.resource import PODS\n"
        "print(pathlib.Path(sys.argv[1]).read_text(), flush=True)\n"
        "async def main():\n"
        "    try: await (await connect()).list(PODS, 'default')\n"
        "    except KubeError as error: print(error.message, flush=True)\n"
        "asyncio.run(main())"
    )
    try:
        local.up(plan, owned=True)
        access = ClusterAccess(local)
        assert local.admin.status()["without_namespaces"] == "switched off"
        access.apply(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"},
             "data": {"k": "mounted"}},
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "plain"}, "spec": {
                "restartPolicy": "Never",
                "containers": [{
                    "name": "main", "image": "pdserve/engine", "command": ["python", "-c", ask],
                    "args": ["/etc/app/k"],
                    "volumeMounts": [{"name": "c", "mountPath": "/etc/app"}]}],
                "volumes": [{"name": "c", "configMap": {"name": "c"}}]}},
        )  # fmt: skip
        access.wait_pod("plain", lambda p: p["status"].get("phase") in ("Succeeded", "Failed"))
        lines = access.kubectl("logs", "plain").splitlines()
        assert lines[0] == "mounted"
        assert "system:serviceaccount:default:default" in lines[1]
    finally:
        local.down()


def test_a_directory_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(LocalError, match=r"holds other things \(thesis.tex\)"):
        LocalCluster("x", tmp_path).up(small_plan("x"))
    assert not LocalCluster("x", tmp_path).down()
    assert (tmp_path / "thesis.tex").read_text() == "irreplaceable"


def test_clusters_get_different_networks() -> None:
    one, two = ClusterNumber(), ClusterNumber()
    try:
        assert one.number != two.number
    finally:
        one.release()
        two.release()


def _pids_of_pods(local: LocalCluster, count: int) -> list[int]:
    """The main process of each of `count` pods, once all run."""

    def now() -> list[int]:
        pods = local.admin.status()["pods"].values()
        pids = [pid for pod in pods for pid in pod["pids"].values() if pid is not None]
        return pids if len(pids) == count else []

    found: list[int] = eventually(f"{count} pods run", now)
    return found


def _children_of_each(pids: list[int]) -> list[int]:
    texts = [Path(f"/proc/{pid}/task/{pid}/children").read_text() for pid in pids]
    return [int(child) for text in texts for child in text.split()] if all(texts) else []
