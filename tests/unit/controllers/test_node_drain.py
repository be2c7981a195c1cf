"""Nodes are drained under instances that still have streams: service goes on beside them."""

from __future__ import annotations

import asyncio

import pytest

from pdserve.controllers.caches import PDSERVICES, ROCE_DOMAINS, SCENARIO_GROUPS
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import service
from pdserve.kube.client import Request
from pdserve.kube.resource import PODS


def names_of(world: World) -> set[str]:
    return {p["metadata"]["name"] for p in world.instances()}


def busy(world: World, names: set[str], requests: int) -> None:
    """So many streams run on each of these."""
    for engine in world.engines.by_ip.values():
        if engine.pod in names:
            engine.busy = requests


@pytest.mark.invariant(5)
@pytest.mark.parametrize("deleted", ["both roles", "prefill", "decode"])
@virtual_time
async def test_a_new_pair_is_routed_while_the_old_one_ends_its_streams(deleted: str) -> None:
    """A pod that is being deleted keeps its table entry, so it must learn of its new peers: the
    newcomers' links to it would stay down, and with them their readiness, until it is gone."""
    world = World()
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    world.create(PDSERVICES, service(recovery={"drainSeconds": 90, "nodeSuspectSeconds": 30}))
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        before = names_of(world)
        busy(world, before, 2)
        role = {"prefill": "-p", "decode": "-d"}.get(deleted, "-")
        gone = {n for n in before if role in n.removeprefix("shop-chat-0")}
        for name in gone:
            world.delete_pod(name)
        took = await world.until(
            lambda: len(world.routed()) == 2 and not world.routed() & gone, 90, "routed again"
        )
        assert took <= 10
        assert gone <= names_of(world), "the old ones still have their streams"
        await asyncio.sleep(60)
        assert gone <= names_of(world)
        busy(world, gone, 0)
        await world.until(lambda: not any(world.get(PODS, n) for n in gone), 10, "idle, so gone")
        assert len(world.routed()) == 2


@virtual_time
async def test_repair_goes_on_without_the_rocedomain() -> None:
    world = World()
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    world.create(PDSERVICES, service())
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        world.api.handle(Request("delete", ROCE_DOMAINS, None, "az1"))
        await asyncio.sleep(5)
        lost = min(world.routed())
        world.kill(lost)
        await world.until(
            lambda: len(world.routed()) == 2 and lost not in world.routed(), 60, "replaced"
        )
        progressing = world.condition(SCENARIO_GROUPS, "shop-chat", "Progressing")
        assert (progressing["status"], progressing["reason"]) == ("False", "UnknownDomain")
        world.domain()
        await world.until(
            lambda: (
                world.condition(SCENARIO_GROUPS, "shop-chat", "Progressing")["reason"] == "Complete"
            ),
            60,
        )
