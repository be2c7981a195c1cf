"""A local cluster: node faults, devices, a real Deployment."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.cluster import (
    ClusterAccess,
    condition,
    container,
    eventually,
    is_ready,
)
from tests.support.own_clusters import DEPLOYMENT

from localcluster import processes
from localcluster.admin import Admin, exchange
from localcluster.errors import LocalError

pytestmark = pytest.mark.cluster


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
    ],
)
def test_faults_that_cannot_be_done_say_why(
    cluster: ClusterAccess, do: Callable[[Admin], object], message: str
) -> None:
    with pytest.raises(LocalError, match=message):
        do(cluster.admin)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (b'{"do": "explode"}', "one of cut, device, freeze, kill, start, status, stop"),
        (b'{"do": "cut"}', "bad request: TypeError"),
    ],
)
def test_a_request_that_the_client_never_sends_is_refused(
    cluster: ClusterAccess, request_: bytes, message: str
) -> None:
    answer = json.loads(exchange(cluster.local.state_dir, request_ + b"\n"))
    assert not answer["ok"]
    assert message in answer["error"]
