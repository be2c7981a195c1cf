"""Nodes are drained one after the other by evictions: the scenario is served throughout."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import NODES, POD_DISRUPTION_BUDGETS
from pdserve.wire import names


def fixed(groups: int, prefill: int = 1, decode: int = 1) -> dict[str, object]:
    counts = {"groups": groups, "prefill": prefill, "decode": decode}
    return {"mode": "Fixed", "fixed": counts}


def served(world: World) -> bool:
    """Some P/D group has both roles that are up: what the gateway could use now."""
    up: dict[str, set[str]] = {}
    for pod in world.instances():
        labels = pod["metadata"]["labels"]
        ready = any(
            c["type"] == "Ready" and c["status"] == "True"
            for c in pod.get("status", {}).get("conditions", ())
        )
        if ready and "deletionTimestamp" not in pod["metadata"]:
            up.setdefault(labels[names.LABEL_GROUP_INDEX], set()).add(labels[names.LABEL_ROLE])
    return any(len(roles) == 2 for roles in up.values())


def least(world: World) -> dict[str, int]:
    """`minAvailable` by name, of those for instances."""
    return {
        b["metadata"]["name"]: b["spec"]["minAvailable"]
        for b in world.seen(POD_DISRUPTION_BUDGETS)
        if "minAvailable" in b["spec"]
    }


async def drain_all(world: World, nodes: list[str] | None = None) -> list[float]:
    """Drain every node, open it again, go on at once; when the scenario was not served."""
    async with watched(world) as cut:
        for node in nodes or [n["metadata"]["name"] for n in world.seen(NODES)]:
            await world.drain(node)
            world.cordon(node, closed=False)
    return cut


@asynccontextmanager
async def watched(world: World) -> AsyncIterator[list[float]]:
    """Times at which the scenario is not served."""
    cut: list[float] = []

    async def watch() -> None:
        while True:
            if not served(world):
                cut.append(asyncio.get_running_loop().time())
            await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    yield cut
    watching.cancel()


ONE_NODE_A_LEAF = ["a", "b", "c", "d"]
IN_TURN = [
    (["a", "b"], 2, 8, (1, 1, 1)), (["a", "b"], 2, 4, (1, 1, 2)), (["a"], 4, 8, (1, 4, 4)),
    (["a", "b"], 2, 8, (2, 1, 1)), (["a"], 4, 8, (3, 2, 1)), (ONE_NODE_A_LEAF, 1, 8, (1, 2, 2)),
    (ONE_NODE_A_LEAF, 1, 4, (3, 1, 1)),
]  # fmt: skip
"""Leaves, nodes and devices of each, P/D groups with their prefills and decodes."""


@pytest.mark.invariant(3)
@pytest.mark.parametrize(("leaves", "per_leaf", "devices", "counts"), IN_TURN)
@virtual_time
async def test_four_nodes_are_drained_in_turn_and_service_goes_on(
    leaves: list[str], per_leaf: int, devices: int, counts: tuple[int, int, int]
) -> None:
    groups, prefill, decode = counts
    world = World(start_seconds=(20.0, 40.0))
    world.nodes(leaves, per_leaf=per_leaf, devices=devices)
    world.domain()
    world.create(PDSERVICES, service(devices=1, ratio=fixed(groups, prefill, decode)))
    async with world.running(), world.operator():
        await world.until(world.service_ready, 300)
        await asyncio.sleep(30)
        assert await drain_all(world) == []
        await world.until(world.service_ready, 300)
        await world.until(lambda: len(world.instances()) == groups * (prefill + decode), 300)


@pytest.mark.invariant(3)
@pytest.mark.parametrize(
    ("groups", "prefill", "decode"), [(1, 1, 1), (1, 2, 2), (2, 1, 1), (3, 2, 1)]
)
@virtual_time
async def test_two_nodes_drained_at_once(groups: int, prefill: int, decode: int) -> None:
    world = World(start_seconds=(20.0, 40.0))
    world.nodes(["a", "b"], per_leaf=2, devices=16)
    world.domain()
    world.create(PDSERVICES, service(devices=1, ratio=fixed(groups, prefill, decode)))
    async with world.running(), world.operator():
        await world.until(world.service_ready, 300)
        await asyncio.sleep(30)
        used = sorted({p["spec"]["nodeName"] for p in world.instances()})
        async with watched(world) as cut:
            await asyncio.gather(*(world.drain(node) for node in used[:2]))
            await world.until(world.service_ready, 300)
        assert cut == []


@virtual_time
async def test_a_node_that_is_closed_and_not_emptied_holds_no_other_drain_up() -> None:
    world = World(start_seconds=(20.0, 40.0))
    world.nodes(["a", "b", "c"], per_leaf=1, devices=2)
    world.nodes(["d"], per_leaf=2, devices=2)
    world.domain()
    world.create(PDSERVICES, service(devices=1, ratio=fixed(3)))
    async with world.running(), world.operator():
        await world.until(world.service_ready, 300)
        await asyncio.sleep(30)
        used = sorted({p["spec"]["nodeName"] for p in world.instances()})
        assert len(used) == 3
        world.cordon(used[0])
        await asyncio.sleep(5)
        async with watched(world) as cut:
            assert await world.drain(used[1]) < 200
        assert cut == []
        stays = [p for p in world.instances() if p["spec"]["nodeName"] == used[0]]
        assert len(stays) == 2, "no drain evicted these"


@virtual_time
async def test_where_there_is_no_room_a_drain_ends_after_the_hold() -> None:
    """Held, and said, for `drainSeconds`; then the service is cut, and that is said too."""
    world = World()
    world.nodes(["a"], per_leaf=1, devices=2)
    world.domain()
    world.create(PDSERVICES, service(devices=1, ratio=fixed(1)))
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        await world.until(lambda: least(world) == {"shop-chat-0": 2}, 10)
        assert not any(world.evict(p["metadata"]["name"]) for p in world.instances())
        world.cordon("a-0")
        await asyncio.sleep(2)
        told = world.condition(SCENARIO_GROUPS, "shop-chat", "Progressing")
        assert (told["status"], told["reason"]) == ("True", "EvictionHeld")
        assert "group 0 keeps its instances on a-0 until others stand in" in told["message"]
        assert 55 <= await world.drain("a-0", 100) <= 75
        assert len(world.events("EvictionUncovered")) == 1
        world.cordon("a-0", closed=False)
        await world.until(world.service_ready)


@virtual_time
async def test_a_closed_node_alone_moves_nothing() -> None:
    """Stand-ins start, for a drain that may come; what serves stays. Reopened: they go again."""
    world = World()
    world.nodes(["a", "b"], per_leaf=2, devices=2)
    world.domain()
    world.create(PDSERVICES, service(devices=1, ratio=fixed(1)))
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        before = {p["metadata"]["uid"]: p["spec"]["nodeName"] for p in world.instances()}
        for node in set(before.values()):
            world.cordon(node)
        await world.until(lambda: len(world.routed()) == 4, 30, "stand-ins serve beside them")
        await asyncio.sleep(600)
        assert before.keys() < {p["metadata"]["uid"] for p in world.instances()}
        assert len(world.instances()) == 4
        for node in set(before.values()):
            world.cordon(node, closed=False)
        await world.until(lambda: len(world.instances()) == 2, 120, "as many as wanted again")
        await world.until(world.service_ready)


@virtual_time
async def test_a_stand_in_that_fails_is_tried_again() -> None:
    world = World(start_seconds=(20.0, 40.0))
    world.nodes(["a", "b"], per_leaf=2, devices=2)
    world.domain()
    world.create(PDSERVICES, service(devices=1, ratio=fixed(1)))
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        before = {p["metadata"]["name"] for p in world.instances()}
        used = sorted({p["spec"]["nodeName"] for p in world.instances()})
        for node in used:
            world.cordon(node)
        await world.until(lambda: len(world.instances()) == 4, 10, "stand-ins")
        await asyncio.sleep(5)
        for pod in world.instances():
            if pod["metadata"]["name"] not in before:
                world.kill(pod["metadata"]["name"])
        async with watched(world) as cut:
            await asyncio.gather(*(world.drain(node) for node in used))
        assert cut == []


@virtual_time
async def test_budgets_come_and_go_with_their_groups() -> None:
    """Also for groups that are there without one (made by an older operator): no pod changes."""
    world = World()
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    world.create(PDSERVICES, service(devices=1, ratio=fixed(2)))
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        await world.until(lambda: least(world) == {"shop-chat-0": 2, "shop-chat-1": 2}, 10)
        before = {p["metadata"]["uid"] for p in world.instances()}
        for name in least(world):
            world.api.handle(KubeRequest("delete", POD_DISRUPTION_BUDGETS, NS, name))
        await world.until(lambda: len(least(world)) == 2, 10, "made again")
        await asyncio.sleep(60)
        assert {p["metadata"]["uid"] for p in world.instances()} == before
        writes = len(world.recorders[0].writes())
        await asyncio.sleep(60)
        assert [r for r in world.recorders[0].writes()[writes:] if r.resource.kind != "Lease"] == []
        uid = world.existing(SCENARIO_GROUPS, "shop-chat")["metadata"]["uid"]
        for budget in world.seen(POD_DISRUPTION_BUDGETS):
            if budget["metadata"]["name"] in least(world):
                assert [o["uid"] for o in budget["metadata"]["ownerReferences"]] == [uid]
        spec = world.existing(PDSERVICES, "shop")["spec"]
        spec["scenarios"][0]["ratio"]["fixed"]["groups"] = 1
        world.patch(PDSERVICES, NS, "shop", {"spec": spec})
        await world.until(lambda: least(world) == {"shop-chat-0": 2}, 200, "one group left")
