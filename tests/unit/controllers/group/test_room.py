"""Placement reckons as the scheduler does: the simulated one refuses no pod that has a place."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from pdserve.api import RoCEDomain
from pdserve.cli.snapshot import FabricState
from pdserve.cli.view_explain import fabric_of
from pdserve.controllers.shared.caches import PDSERVICES, ROCE_DOMAINS, SCENARIO_GROUPS, make_caches
from pdserve.controllers.shared.fabrics import Fabrics
from pdserve.dst.moments import stamp
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NPU, NS, service
from pdserve.engines.pod_profile import Allowed, Rights
from pdserve.exposition import Registry
from pdserve.kube.resource import NODES, PODS, Object
from pdserve.terms.times import epoch_of
from pdserve.topology import fabric_spec

HOME = "c-0"
"""The last of three nodes; the others come first among equals."""


def make(rights: Rights | None = None, home: Mapping[str, str] | None = None) -> World:
    """Three nodes in a leaf each; HOME has more of something."""
    world = World(rights=rights or Rights())
    for leaf in "abc":
        world.node(leaf, f"{leaf}-0", 8, **(home if home and f"{leaf}-0" == HOME else {}))
    world.domain()
    return world


def wanting(container: Object, **spec: Any) -> Object:
    """A PDService of 1P1D whose engines' container is patched."""
    made = service(devices=2)
    for role in ("prefill", "decode"):
        patch = {"containers": [{"name": "engine", **container}], **spec}
        made["spec"][role]["template"] = {"spec": patch}
    return made


def memory(amount: str) -> Object:
    return {"resources": {"requests": {"memory": amount}}}


def bystander(world: World, name: str, node: str, **container: Any) -> None:
    """A foreign pod, already running, without devices."""
    world.create(PODS, {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NS},
        "spec": {"nodeName": node, "containers": [{"name": "x", "image": "x", **container}]},
        "status": {"phase": "Running"},
    })  # fmt: skip


def on(world: World) -> set[str]:
    return {p["spec"]["nodeName"] for p in world.instances()}


@pytest.mark.parametrize(
    ("home", "container", "spec"),
    [
        ({"memory": "2Ti"}, memory("600Gi"), {}),
        ({"cpu": "132"}, {"resources": {"limits": {"cpu": "64500m"}}}, {}),
        ({"hugepages-1Gi": "64Gi"},
         {"resources": {"limits": {"hugepages-1Gi": "8Gi", "memory": "1Gi"}}}, {}),
        ({"example.com/nic": "2"}, {"resources": {"limits": {"example.com/nic": "1"}}}, {}),
        ({"memory": "2Ti"}, {},
         {"initContainers": [{"name": "fetch", "image": "x", **memory("600Gi")}]}),
        ({"memory": "2Ti"}, {}, {"resources": {"requests": {"memory": "600Gi"}}}),
    ],
    ids=["memory", "cpu", "huge pages", "other device", "init container", "of the pod"],
)  # fmt: skip
def test_the_one_node_with_room_is_found_at_the_first_try(
    home: dict[str, str], container: Object, spec: Object
) -> None:
    @virtual_time
    async def run() -> None:
        world = make(home=home)
        world.create(PDSERVICES, wanting(container, **spec))
        async with world.running(), world.operator():
            await world.until(world.service_ready, 60)
            assert len(world.ever) == 2, "one pod per instance"
            assert on(world) == {HOME}
            world.kill(world.instances()[0]["metadata"]["name"])
            await world.until(lambda: len(world.ever) == 3, 30, "substituted")
            await world.until(world.service_ready, 60)
            assert on(world) == {HOME}

    run()


@virtual_time
async def test_pods_without_devices_count_and_what_they_leave_is_used_at_once() -> None:
    world = make()
    for leaf in "abc":
        bystander(world, f"big-{leaf}", f"{leaf}-0", **memory("500Gi"))
    world.create(PDSERVICES, wanting(memory("64Gi")))
    async with world.running(), world.operator():
        await world.until(lambda: placed(world).get("reason") == "NoFit", 30)
        assert "memory: 3 of 3 nodes lack 64Gi" in placed(world)["message"]
        assert not world.ever
        began = asyncio.get_running_loop().time()
        world.api.end_pod(NS, "big-b")
        await world.until(world.service_ready, 60)
        assert asyncio.get_running_loop().time() - began < 10
        assert on(world) == {"b-0"}
        assert len(world.ever) == 2


def placed(world: World) -> dict[str, Any]:
    return world.condition(SCENARIO_GROUPS, "shop-chat", "Placed")


@virtual_time
async def test_one_host_port_keeps_instances_apart() -> None:
    world = make(Rights((Allowed("spec.containers[*].ports[*].hostPort"),)))
    bystander(world, "web", "a-0", ports=[{"containerPort": 80, "hostPort": 9000}])
    ports = [{"containerPort": 9000, "hostPort": 9000, "name": "debug"}]
    world.create(PDSERVICES, wanting({"ports": ports}))
    async with world.running(), world.operator():
        await world.until(world.service_ready, 60)
        assert sorted(p["spec"]["nodeName"] for p in world.instances()) == ["b-0", "c-0"]
        assert len(world.ever) == 2


SSD = [{"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}]


@pytest.mark.parametrize(
    "demand",
    [
        {"nodeSelector": {"disk": "ssd"}},
        {"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": SSD}}}},
    ],
    ids=["selector", "affinity"],
)  # fmt: skip
def test_labels_that_a_template_demands_are_looked_for(demand: Object) -> None:
    @virtual_time
    async def run() -> None:
        world = make()
        world.create(PDSERVICES, wanting({}, **demand))
        async with world.running(), world.operator():
            await world.until(lambda: placed(world).get("reason") == "NoFit", 30)
            says = "nodes out of use: 3 (the template wants disk=ssd)"
            assert says in placed(world)["message"]
            assert not world.ever
            world.patch(NODES, "", "b-0", {"metadata": {"labels": {"disk": "ssd"}}})
            await world.until(world.service_ready, 60)
            assert on(world) == {"b-0"} and len(world.ever) == 2

    run()


@pytest.mark.parametrize(
    "cure",
    [
        lambda world: world.api.end_pod(NS, "neighbour"),
        lambda world: world.patch(NODES, "", HOME, {"metadata": {"labels": {"a": "b"}}}),
        lambda world: world.patch(NODES, "", HOME, {"spec": {"taints": None}}),
        lambda world: world.patch(
            NODES, "", HOME, {"status": {"allocatable": {"cpu": "65"}}}, subresource="status"
        ),
    ],
    ids=["pod left", "label", "taint", "amount"],
)
def test_after_all_nodes_refused_a_change_of_one_is_tried_soon(
    cure: Callable[[World], Any],
) -> None:
    """For a reason that placement does not know, such as a pod that wants no neighbours."""

    @virtual_time
    async def run() -> None:
        world = make()
        bystander(world, "neighbour", HOME)
        soft = [{"key": "old", "value": "", "effect": "PreferNoSchedule"}]
        world.patch(NODES, "", HOME, {"spec": {"taints": soft}})
        fits: set[str] = {"anywhere"}
        world.unfit = lambda node, _pod: None if node in fits else "node(s) didn't match rules"
        world.create(PDSERVICES, wanting({}))
        async with world.running(), world.operator():
            await world.until(lambda: waits(world) > 100, 900, "every node was tried, and more")
            assert tried(world) == {"a-0", "b-0", "c-0"}
            fits.add(HOME)
            cure(world)
            began = asyncio.get_running_loop().time()
            await world.until(world.service_ready, 120)
            assert asyncio.get_running_loop().time() - began < 75

    run()


@virtual_time
async def test_after_all_nodes_refused_they_are_tried_again_within_minutes() -> None:
    """Nothing that the operator sees changes when the reason goes."""
    world = make()
    fits: set[str] = {"anywhere"}
    world.unfit = lambda node, _pod: None if node in fits else "node(s) didn't match rules"
    world.create(PDSERVICES, wanting({}))
    async with world.running(), world.operator():
        await world.until(lambda: waits(world) > 250, 2400, "the longest back-off")
        fits |= {"a-0", "b-0", "c-0"}
        began = asyncio.get_running_loop().time()
        await world.until(world.service_ready, 600)
        assert asyncio.get_running_loop().time() - began < 330


def repairs(world: World) -> list[Object]:
    group = world.get(SCENARIO_GROUPS, "shop-chat") or {}
    return list(group.get("status", {}).get("repairs", ()))


def waits(world: World) -> float:
    """Seconds until the next try in the slot that waits longest."""
    return max(
        (epoch_of(r["notBeforeTime"]) - epoch_of(stamp()) for r in repairs(world)
         if r.get("notBeforeTime")), default=0.0,
    )  # fmt: skip


def tried(world: World) -> set[str]:
    return {s["node"] for r in repairs(world) for s in r.get("suspects", ())}


@virtual_time
async def test_a_tree_kept_up_to_date_equals_one_built_anew() -> None:
    """Pods come, end and go; whatever the order, what is counted is what is there."""
    world = make()
    caches = make_caches(world.api.client(), None, Registry(), lambda *_: None)
    fabrics = Fabrics(caches)
    async with asyncio.TaskGroup() as tasks:
        following = [tasks.create_task(cache.run()) for cache in caches]
        await caches.wait_synced()
        domain = RoCEDomain.stored(world.seen(ROCE_DOMAINS)[0])
        for number in range(120):
            leaf = "abc"[number % 3]
            cpu = {"requests": {"cpu": f"{number}m"}, "limits": {NPU: str(number % 2)}}
            bystander(world, f"p{number}", f"{leaf}-0", resources=cpu)
            if number % 4 == 1:
                world.api.end_pod(NS, f"p{number - 1}")
            if number % 7 == 6:
                done = {"status": {"phase": "Succeeded"}}
                world.patch(PODS, NS, f"p{number}", done, subresource="status")
            await asyncio.sleep(0.5)
            found = fabrics.of(fabric_spec(domain))
            state = FabricState(domain, tuple(world.seen(NODES)), tuple(world.seen(PODS)))
            fresh = fabric_of(state)
            for node in fresh.nodes:
                assert found.nodes[node].used == fresh.nodes[node].used
        for task in following:
            task.cancel()


@virtual_time
async def test_a_hundred_thousand_pods_of_others_are_cheap() -> None:
    """What is kept of a pod without devices: where it is, and what it takes."""
    count = 2000
    world = make()
    for number in range(count):
        spec = {"env": [{"name": "A", "value": "x" * 500}], **memory("100Mi")}
        bystander(world, f"web-{number}", f"{'abc'[number % 3]}-0", **spec)
    caches = make_caches(world.api.client(), None, Registry(), lambda *_: None)
    Fabrics(caches)
    tracemalloc.start()
    try:
        following = asyncio.create_task(caches.pods.run())
        await caches.pods.synced.wait()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    following.cancel()
    assert len(caches.pods) == count
    assert kept / count < 1200
