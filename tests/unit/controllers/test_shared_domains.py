"""A RoCEDomain in a simulated cluster: its status, and services and operators that share it."""

from __future__ import annotations

import asyncio

from tests.support.simulated_operator import make

from pdserve.controllers.shared.caches import PDSERVICES, ROCE_DOMAINS, SCENARIO_GROUPS
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NPU, NS, service
from pdserve.kube.resource import NAMESPACES
from pdserve.wire.pin import pinned_node


@virtual_time
async def test_a_shortage_of_devices_names_what_fits() -> None:
    world = World()
    world.nodes(["a"], per_leaf=1, devices=8)
    world.domain()
    fixed = {"mode": "Fixed", "fixed": {"groups": 1, "prefill": 2, "decode": 2}}
    world.create(PDSERVICES, service(ratio=fixed))
    async with world.running(), world.operator():
        await world.until(
            lambda: world.condition(SCENARIO_GROUPS, "shop-chat", "Placed").get("status") == "False"
        )
        message = world.condition(SCENARIO_GROUPS, "shop-chat", "Placed")["message"]
        assert "1P1D" in message
        assert world.instances() == []
        assert world.condition(PDSERVICES, "shop", "Ready")["status"] == "False"
        # Devices arrive: no other trigger is needed.
        world.node("a", "a-late", 8)
        await world.until(world.service_ready, 60, "Ready after a node joined")


@virtual_time
async def test_an_unknown_domain_is_said_and_its_creation_is_enough() -> None:
    world = World()
    world.nodes(["a"], per_leaf=1)
    world.create(PDSERVICES, service())
    async with world.running(), world.operator():
        await world.until(
            lambda: (
                world.condition(SCENARIO_GROUPS, "shop-chat", "Placed").get("reason")
                == "UnknownDomain"
            )
        )
        await world.until(
            lambda: (
                "no RoCEDomain 'az1'"
                in world.condition(PDSERVICES, "shop", "Ready").get("message", "")
            )
        )
        world.domain()
        await world.until(world.service_ready, 60)


@virtual_time
async def test_the_domain_status_counts_nodes_and_free_devices() -> None:
    world = make()
    world.create(PDSERVICES, service())
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        await asyncio.sleep(2)
        status = world.existing(ROCE_DOMAINS, "az1", "")["status"]
        assert status["nodes"] == {"total": 4, "ready": 4, "excluded": 0, "unhealthyDevices": 0}
        # Three whole nodes are free for instances of 4 devices: 6 of them.
        assert status["free"] == [{"resource": NPU, "devices": 24, "largestGroup": "3P3D"}]
        assert status["levels"] == [{"name": "leaf", "domains": 2}, {"name": "node", "domains": 4}]


@virtual_time
async def test_operators_of_one_namespace_each_agree_on_the_domain_they_share() -> None:
    """Their ScenarioGroups ask for instances of different sizes, which neither tells the other."""
    world = make()
    world.create(PDSERVICES, service(devices=2))
    world.create(NAMESPACES, {"metadata": {"name": "team-b"}})
    theirs = service("their", devices=4)
    theirs["metadata"]["namespace"] = "team-b"
    async with world.running(), world.operator(namespace=NS), world.operator(namespace="team-b"):
        await world.until(lambda: len(world.instances()) == 2, 60, "one service has instances")
        world.create(PDSERVICES, theirs)
        await world.until(lambda: len(world.instances()) == 4, 60, "both have")
        await asyncio.sleep(90)
        settled = world.existing(ROCE_DOMAINS, "az1", "")
        assert settled["status"]["free"] == [
            {"resource": NPU, "devices": 20, "largestGroup": "10P10D"}
        ]
        await asyncio.sleep(600)
        assert world.get(ROCE_DOMAINS, "az1", "") == settled
    for recorder, namespace in zip(world.recorders, (NS, "team-b"), strict=True):
        written = {r.namespace for r in recorder.writes()}
        assert written <= {namespace, None}


@virtual_time
async def test_operators_that_chose_the_same_devices_end_with_devices_each() -> None:
    """The scheduler refuses what does not fit beside the other's, and that is placed anew."""
    world = make()
    world.create(NAMESPACES, {"metadata": {"name": "team-b"}})
    theirs = service("their", devices=8)
    theirs["metadata"]["namespace"] = "team-b"
    world.create(PDSERVICES, service(devices=8))
    world.create(PDSERVICES, theirs)
    async with world.running(), world.operator(namespace=NS), world.operator(namespace="team-b"):
        await world.until(lambda: len(world.instances()) == 4, 60, "both services have instances")
        first = [pinned_node(p) for p in world.instances()]
        assert len(set(first)) == 2, "the operators did not choose the same nodes"

        def all_ready() -> bool:
            conditions = [p.get("status", {}).get("conditions", ()) for p in world.instances()]
            ready = [c for cs in conditions for c in cs if c["type"] == "Ready"]
            return len(ready) == 4 and all(c["status"] == "True" for c in ready)

        seconds = await world.until(all_ready, 60, "all are ready")
        assert seconds < 30
        assert len({p["spec"]["nodeName"] for p in world.instances()}) == 4
