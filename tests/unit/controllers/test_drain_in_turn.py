"""Nodes are drained one after the other by evictions: the scenario is served throughout."""

from __future__ import annotations

import asyncio

import pytest

from pdserve.controllers.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.kube.client import Request
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import NODES, POD_DISRUPTION_BUDGETS, PODS
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


def budgets(world: World) -> dict[str, int]:
    """`minAvailable` by name, of those for instances."""
    return {
        b["metadata"]["name"]: b["spec"]["minAvailable"]
        for b in world.seen(POD_DISRUPTION_BUDGETS)
        if "minAvailable" in b["spec"]
    }


async def drain_all(world: World) -> list[float]:
    """Drain every node, open it again, go on at once; when the scenario was not served."""
    cut: list[float] = []

    async def watch() -> None:
        while True:
            if not served(world):
                cut.append(asyncio.get_running_loop().time())
            await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    for node in [n["metadata"]["name"] for n in world.seen(NODES)]:
        await world.drain(node)
        world.cordon(node, closed=False)
    watching.cancel()
    return cut


@pytest.mark.invariant(5)
@pytest.mark.parametrize(("groups", "members", "per_node"), [(2, 1, 8), (3, 1, 4), (1, 2, 2)])
@virtual_time
async def test_four_nodes_are_drained_in_turn_and_service_goes_on(
    groups: int, members: int, per_node: int
) -> None:
    """Both groups on one node; three over several; one group whose two halves are on two nodes."""
    world = World(start_seconds=(20.0, 40.0))
    world.nodes(["a", "b"], per_leaf=2, devices=per_node)
    world.domain()
    ratio = fixed(groups, members, members)
    world.create(PDSERVICES, service(devices=1, ratio=ratio))
    async with world.running(), world.operator():
        await world.until(world.service_ready, 300)
        await asyncio.sleep(30)
        assert await drain_all(world) == []


@virtual_time
async def test_a_group_that_alone_serves_is_not_evicted() -> None:
    """Without a cordon nothing is given up; with one only what others stand in for."""
    world = World()
    world.nodes(["a"], per_leaf=1, devices=2)
    world.domain()
    world.create(PDSERVICES, service(devices=1, ratio=fixed(1)))
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        await world.until(lambda: budgets(world) == {"shop-chat-0": 2}, 10)
        world.cordon("a-0")
        await asyncio.sleep(60)
        for pod in world.instances():
            with pytest.raises(KubeError) as refused:
                world.api.handle(Request("create", PODS, NS, pod["metadata"]["name"], "eviction"))
            assert refused.value.status == 429


@virtual_time
async def test_budgets_come_and_go_with_their_groups() -> None:
    """Also for groups that are there without one (made by an older operator): no pod changes."""
    world = World()
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    world.create(PDSERVICES, service(devices=1, ratio=fixed(2)))
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        await world.until(lambda: budgets(world) == {"shop-chat-0": 2, "shop-chat-1": 2}, 10)
        before = {p["metadata"]["uid"] for p in world.instances()}
        for name in budgets(world):
            world.api.handle(Request("delete", POD_DISRUPTION_BUDGETS, NS, name))
        await world.until(lambda: len(budgets(world)) == 2, 10, "made again")
        await asyncio.sleep(60)
        assert {p["metadata"]["uid"] for p in world.instances()} == before
        writes = len(world.recorders[0].writes())
        await asyncio.sleep(60)
        assert [r for r in world.recorders[0].writes()[writes:] if r.resource.kind != "Lease"] == []
        uid = world.get(SCENARIO_GROUPS, "shop-chat")["metadata"]["uid"]
        for budget in world.seen(POD_DISRUPTION_BUDGETS):
            if budget["metadata"]["name"] in budgets(world):
                assert [o["uid"] for o in budget["metadata"]["ownerReferences"]] == [uid]
        spec = world.get(PDSERVICES, "shop")["spec"]
        spec["scenarios"][0]["ratio"]["fixed"]["groups"] = 1
        world.patch(PDSERVICES, NS, "shop", {"spec": spec})
        await world.until(lambda: budgets(world) == {"shop-chat-0": 2}, 200, "one group left")
