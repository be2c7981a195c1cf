"""An operator of all namespaces beside one of a namespace: each object has one of them."""

from __future__ import annotations

import asyncio

from pdserve.controllers.shared.caches import PDSERVICES, ROCE_DOMAINS, SCENARIO_GROUPS
from pdserve.dst.recorder import Recorder
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import NAMESPACES, Object

TEAM = "team-b"
LEFT = {TEAM: "team-b/op"}


def make() -> World:
    world = World()
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    world.create(NAMESPACES, {"metadata": {"name": TEAM}})
    world.create(PDSERVICES, service(devices=2))
    theirs = service("their", devices=4)
    theirs["metadata"]["namespace"] = TEAM
    world.create(PDSERVICES, theirs)
    return world


def ready(world: World, name: str, namespace: str) -> bool:
    found = world.get(PDSERVICES, name, namespace) or {}
    conditions: list[Object] = found.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def both(world: World) -> bool:
    return ready(world, "shop", NS) and ready(world, "their", TEAM)


def written(recorder: Recorder) -> set[str | None]:
    return {r.namespace for r in recorder.writes()}


@virtual_time
async def test_what_is_left_to_another_operator_is_not_written() -> None:
    world = make()
    async with (
        world.running(),
        world.operator(left=LEFT),
        world.operator(namespace=TEAM, left={"": "all/op"}),
    ):
        await world.until(lambda: both(world), 120, "each serves its own")
        world.kill(min(p["metadata"]["name"] for p in world.instances()))
        scale = {"spec": {"replicas": 3}}
        world.patch(SCENARIO_GROUPS, TEAM, "their-chat", scale)
        world.patch(SCENARIO_GROUPS, NS, "shop-chat", scale)
        await asyncio.sleep(600)
        settled = world.get(ROCE_DOMAINS, "az1", "")
        await asyncio.sleep(600)
        assert both(world)
        assert world.get(ROCE_DOMAINS, "az1", "") == settled
    wide, narrow = world.recorders
    assert written(wide) == {NS, None}
    assert written(narrow) == {TEAM}


@virtual_time
async def test_a_namespace_that_is_left_no_more_is_looked_after_at_once() -> None:
    world = make()
    async with world.running(), world.operator(left=LEFT):
        await world.until(lambda: ready(world, "shop", NS), 120, "its own is served")
        assert not world.get(SCENARIO_GROUPS, "their-chat", TEAM)
        (core,) = world.cores
        core.leave({})
        await world.until(lambda: both(world), 60, "the other is, too")


@virtual_time
async def test_an_operator_that_leaves_a_namespace_keeps_no_devices_for_it() -> None:
    """Its instances may be gone for good; only its own operator knows."""
    world = make()
    async with world.running(), world.operator():
        await world.until(lambda: both(world), 120, "both are served")
        (core,), (recorder,) = world.cores, world.recorders
        core.leave(LEFT)
        await asyncio.sleep(5)
        before = len(recorder.writes())
        theirs = [p for p in world.instances() if p["metadata"]["namespace"] == TEAM]
        for pod in theirs:
            world.delete_pod(pod["metadata"]["name"], TEAM)
        await asyncio.sleep(300)
        requests: list[KubeRequest] = recorder.writes()[before:]
        assert [r for r in requests if r.namespace == TEAM] == []
        free = world.existing(ROCE_DOMAINS, "az1", "")["status"]["free"]
        assert free[0]["devices"] == 32 - 2 * 2
