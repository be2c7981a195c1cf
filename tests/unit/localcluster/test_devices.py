"""Fake devices: who gets them, which addresses, what is left alone, and marks of sick ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from localcluster.devices import ANNOTATION_FAKE, lacks, plan_devices, set_health, set_up
from localcluster.errors import LocalError
from pdserve.dst.api_server import FakeApi
from pdserve.kube.client import KubeClient
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import NODES, Object

NPU = "huawei.com/Ascend910"
ROCE = "pdserve.io/roce-devices"
SICK = "pdserve.io/unhealthy-devices"


def node(name: str, *, taint: str = "", capacity: int = 0, **meta: Any) -> Object:
    status: dict[str, Any] = {"capacity": {"cpu": "2"}}
    if capacity:
        status["capacity"][NPU] = str(capacity)
    taints = [{"key": taint, "effect": "NoSchedule"}] if taint else []
    return {
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, **meta},
        "spec": {"taints": taints}, "status": status,
    }  # fmt: skip


CONTROL = node("control", taint="node-role.kubernetes.io/control-plane")


def server(*nodes: Object) -> FakeApi:
    api = FakeApi()
    for obj in nodes:
        name = obj["metadata"]["name"]
        api.handle(KubeRequest("create", NODES, body=obj))
        api.handle(KubeRequest("patch", NODES, None, name, "status", body=obj, patch="merge"))
    return api


def by_name(api: FakeApi) -> dict[str, Object]:
    return {obj["metadata"]["name"]: obj for obj in api.objects(NODES)}


def first_ip(obj: Object) -> str:
    return str(json.loads(obj["metadata"]["annotations"][ROCE])[0]["ip"])


async def test_workers_get_capacity_and_addresses() -> None:
    api = server(CONTROL, node("w2"), node("w1"))
    given = await set_up(api.client(), NPU, 2)
    assert [(n.node, n.devices, n.own) for n in given] == [("w1", 2, False), ("w2", 2, False)]
    nodes = by_name(api)
    assert nodes["w1"]["status"]["capacity"] == {"cpu": "2", NPU: "2"}
    assert nodes["w1"]["status"]["allocatable"] == {NPU: "2"}
    assert json.loads(nodes["w1"]["metadata"]["annotations"][ROCE]) == [
        {"id": 0, "ip": "198.18.0.2"}, {"id": 1, "ip": "198.18.0.3"},
    ]  # fmt: skip
    assert first_ip(nodes["w2"]) == "198.18.1.2"
    assert NPU not in nodes["control"]["status"]["capacity"]


async def test_again_writes_nothing() -> None:
    api = server(node("w1"), node("w2"))
    first = await set_up(api.client(), NPU, 8)
    version = api.version
    assert await set_up(api.client(), NPU, 8) == first
    assert api.version == version


async def test_what_a_kubelet_reset_comes_back() -> None:
    api = server(node("w1"))
    await set_up(api.client(), NPU, 8)
    zero = {"status": {"capacity": {NPU: "0"}, "allocatable": {NPU: "0"}}}
    assert not lacks(by_name(api)["w1"], NPU, 8)
    api.handle(KubeRequest("patch", NODES, None, "w1", "status", body=zero, patch="merge"))
    assert lacks(by_name(api)["w1"], NPU, 8)
    await set_up(api.client(), NPU, 8)
    assert by_name(api)["w1"]["status"]["allocatable"][NPU] == "8"


def test_nodes_that_are_to_have_none_lack_none() -> None:
    assert lacks(node("new"), NPU, 8)
    assert not lacks(node("new"), NPU, 0)
    assert not lacks(node("w", labels={"local.pdserve.io/devices": "0"}), NPU, 8)
    assert not lacks(node("real", capacity=4), NPU, 8)


async def test_addresses_stay_when_nodes_come_and_go() -> None:
    api = server(node("b"), node("c"))
    await set_up(api.client(), NPU, 8)
    before = {name: first_ip(obj) for name, obj in by_name(api).items()}
    api.handle(KubeRequest("create", NODES, body=node("a")))
    await set_up(api.client(), NPU, 4)
    after = {name: first_ip(obj) for name, obj in by_name(api).items()}
    assert {name: after[name] for name in before} == before
    assert len(set(after.values())) == 3


async def test_real_devices_are_left_alone() -> None:
    api = server(node("real", capacity=4), node("none"))
    given = await set_up(api.client(), NPU, 8)
    assert [(n.node, n.devices, n.own) for n in given] == [("none", 8, False), ("real", 4, True)]
    real = by_name(api)["real"]
    assert real["status"]["capacity"][NPU] == "4"
    assert ROCE not in (real["metadata"].get("annotations") or {})


async def test_another_number_replaces_ours() -> None:
    api = server(node("w1"))
    await set_up(api.client(), NPU, 8)
    await set_up(api.client(), NPU, 4)
    one = by_name(api)["w1"]
    assert one["status"]["capacity"][NPU] == "4"
    assert len(json.loads(one["metadata"]["annotations"][ROCE])) == 4
    assert one["metadata"]["annotations"][ANNOTATION_FAKE] == NPU


async def test_another_resource_takes_the_place_of_ours() -> None:
    api = server(node("w1"))
    await set_up(api.client(), NPU, 8)
    await set_up(api.client(), "nvidia.com/gpu", 2)
    assert by_name(api)["w1"]["status"]["allocatable"] == {"nvidia.com/gpu": "2"}
    version = api.version
    await set_up(api.client(), "nvidia.com/gpu", 2)
    assert api.version == version


def test_a_label_says_how_many_one_node_has() -> None:
    label = {"local.pdserve.io/devices": "3"}
    plan = plan_devices([node("w1", labels=label), node("w2")], NPU, 8)
    assert [n.devices for n in plan] == [3, 8]


@pytest.mark.parametrize(
    ("nodes", "devices", "message"),
    [
        ([CONTROL], 8, "no workers: every node is a control plane"),
        ([node("w")], 17, "node w: '17' devices, expected 0 to 16"),
        ([node("w", labels={"local.pdserve.io/devices": "x"})], 8, "node w: 'x' devices"),
        ([node(f"w{i}") for i in range(513)], 8, "more than 512 workers"),
    ],
)
def test_mistakes_are_named(nodes: list[Object], devices: int, message: str) -> None:
    with pytest.raises(LocalError, match=message):
        plan_devices(nodes, NPU, devices)


async def test_a_control_plane_that_takes_pods_is_a_worker() -> None:
    assert [n.node for n in plan_devices([node("only")], NPU, 8)] == ["only"]


async def sick(api: FakeApi) -> str | None:
    annotations = by_name(api)["w1"]["metadata"]["annotations"]
    value: str | None = annotations.get(SICK)
    return value


@pytest.fixture
async def one() -> tuple[FakeApi, KubeClient]:
    api = server(node("w1"))
    client = api.client()
    await set_up(client, NPU, 8)
    return api, client


async def test_health_is_marked_and_unmarked(one: tuple[FakeApi, KubeClient]) -> None:
    api, client = one
    assert await set_health(client, "w1", unhealthy=[5, 3]) == {3, 5}
    assert await sick(api) == "3,5"
    assert await set_health(client, "w1", healthy=[5]) == {3}
    assert await sick(api) == "3"
    assert await set_health(client, "w1", healthy=[3]) == frozenset()
    assert await sick(api) is None
    # A kubelet makes allocatable out of capacity, so the mark is the annotation alone.
    assert by_name(api)["w1"]["status"]["allocatable"][NPU] == "8"


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [("w9", 0, "the cluster has no 'w9'"), ("w1", 8, "device 8: w1 has 0,1,2,3,4,5,6,7")],
)
async def test_health_of_what_is_not_there(
    one: tuple[FakeApi, KubeClient], name: str, device: int, message: str
) -> None:
    with pytest.raises(LocalError, match=message):
        await set_health(one[1], name, unhealthy=[device])
