"""Nodes are drained under instances that still have streams: service goes on beside them."""

from __future__ import annotations

import asyncio
import json
from functools import partial

import pytest

from pdserve.api import RoCEDomain
from pdserve.api.scenariogroup import MAX_FABRIC
from pdserve.controllers.shared.caches import PDSERVICES, ROCE_DOMAINS, SCENARIO_GROUPS
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import PODS, Object


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


@pytest.mark.parametrize("restart", ["none", "before the fault", "after the fault"])
@virtual_time
async def test_repair_goes_on_without_the_rocedomain(restart: str) -> None:
    """Also when the operator that knew it is gone: the group's status remembers its tree."""
    world = World()
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    world.create(PDSERVICES, service())
    async with world.running():
        async with world.operator() as first:
            await world.until(world.service_ready)
            world.api.handle(KubeRequest("delete", ROCE_DOMAINS, None, "az1"))
            await asyncio.sleep(5)
            if restart == "before the fault":
                first.cancel()
                await asyncio.sleep(5)
            lost = min(world.routed())
            world.kill(lost)
            if restart == "none":
                await without_domain(world, lost)
        async with world.operator():
            await without_domain(world, lost)
            world.domain()
            condition = partial(world.condition, SCENARIO_GROUPS, "shop-chat", "Progressing")
            await world.until(lambda: condition()["reason"] == "Complete", 60, "all is as before")


async def without_domain(world: World, lost: str) -> None:
    await world.until(
        lambda: len(world.routed()) == 2 and lost not in world.routed(), 60, "replaced"
    )
    condition = partial(world.condition, SCENARIO_GROUPS, "shop-chat", "Progressing")
    await world.until(lambda: condition()["reason"] == "UnknownDomain", 60, "told")
    assert condition()["status"] == "False"


@pytest.mark.parametrize(
    "fabric",
    [
        {"domain": "az1", "spec": "[" * 5000},
        {"domain": "az1", "spec": '{"levels": 5}'},
        {"domain": "az2", "spec": "{}"},
        {"domain": "az1", "spec": ""},
    ],
)
@virtual_time
async def test_a_remembered_tree_that_cannot_be_read_is_none(fabric: Object) -> None:
    world = World()
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    world.create(PDSERVICES, service())
    async with world.running():
        async with world.operator():
            await world.until(world.service_ready)
        world.api.handle(KubeRequest("delete", ROCE_DOMAINS, None, "az1"))
        patch = {"status": {"fabric": fabric}}
        world.patch(SCENARIO_GROUPS, NS, "shop-chat", patch, subresource="status")
        async with world.operator():
            condition = partial(world.condition, SCENARIO_GROUPS, "shop-chat", "Ready")
            await world.until(lambda: condition()["reason"] == "UnknownDomain", 60, "told")
            assert len(world.routed()) == 2
            world.domain()
            await world.until(lambda: condition()["status"] == "True", 60, "as before")


def test_the_largest_rocedomain_is_remembered() -> None:
    label = "a" * 63
    prefix = ".".join(["b" * 63, "c" * 63, "d" * 63, "e" * 61])
    levels = [
        {
            "name": f"{'l' * 18}{n}",
            "nodeLabel": f"{prefix}/{label[:-1]}{n}",
            "hopCost": 1_000_000,
            "uplink": {"bandwidth": "1000Gbps"},
        }
        for n in range(8)
    ]
    overrides = [
        {"level": levels[0]["name"], "value": f"{label[:-3]}{n:03}", "cordoned": True}
        for n in range(256)
    ]
    chosen = {f"{prefix}/{label[:-2]}{n:02}": label for n in range(16)}
    spec = {
        "nodeSelector": {"matchLabels": chosen},
        "levels": levels,
        "overrides": overrides,
        "missingLabelPolicy": "UnknownDomain",
        "addressSource": "NodeAnnotation",
    }
    RoCEDomain.parse({"metadata": {"name": "az1"}, "spec": spec})
    assert len(json.dumps(spec)) <= MAX_FABRIC
