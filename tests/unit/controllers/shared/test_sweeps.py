"""A look at everything is made of small steps, and who needs one most comes first."""

from __future__ import annotations

import asyncio
import random
from typing import Any, cast

import pytest

from pdserve.api import RoCEDomain
from pdserve.controllers import worker
from pdserve.controllers.shared import triggers
from pdserve.controllers.shared.caches import PDSERVICES, ROCE_DOMAINS, SCENARIO_GROUPS, make_caches
from pdserve.controllers.shared.context import OperatorContext
from pdserve.controllers.shared.fabrics import Fabrics
from pdserve.controllers.shared.metrics import OperatorMetrics
from pdserve.controllers.shared.scope import Scope
from pdserve.controllers.shared.triggers import Triggers
from pdserve.controllers.shared.unsettled import Unsettled
from pdserve.dst.moments import stamp
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.exposition import Registry
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import NODES, PODS, Object, ObjectKey
from pdserve.kube.workqueue import QueueKey, WorkQueue
from pdserve.topology import (
    Fabric,
    PodView,
    build_fabric,
    fabric_spec,
    node_view,
    reservation_of,
)


class Bare:
    """As much of an `OperatorContext` as the worker uses."""

    def __init__(self) -> None:
        self.queue = WorkQueue(per_namespace=4)
        self.metrics = OperatorMetrics(Registry())
        self.scope = Scope()


@pytest.mark.invariant(14)
@virtual_time
async def test_the_event_loop_runs_between_any_two_reconciliations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reconciliations that find nothing to do never wait for anything by themselves."""
    rounds = [0]
    seen: list[int] = []

    async def tick() -> None:
        while True:
            rounds[0] += 1
            await asyncio.sleep(0)

    async def look(_context: Any, _key: ObjectKey) -> None:
        seen.append(rounds[0])
        if len(seen) == 300:
            ticking.cancel()

    monkeypatch.setitem(cast("dict[str, Any]", worker.RECONCILERS), "Test", look)
    context = Bare()
    for number in range(300):
        context.queue.add(QueueKey("Test", f"ns{number % 30}", str(number)))
    ticking = asyncio.create_task(tick())
    working = asyncio.create_task(worker.work(cast(OperatorContext, context)))
    await asyncio.sleep(1)
    assert len(set(seen)) == 300, "at most one in each round of the loop"
    working.cancel()


def add_domain_and_groups(world: World, groups: int) -> None:
    world.nodes(["a", "b", "c"], per_leaf=5)
    world.domain()
    for number in range(groups):
        world.create(PDSERVICES, service(f"shop{number:02d}"))


class Watching:
    """Caches, triggers and trees as an operator has them; nothing acts on what they say."""

    def __init__(self, world: World) -> None:
        self.queue = WorkQueue()
        self.caches = make_caches(
            world.api.client(), None, Registry(), lambda *_: None, random.Random(1)
        )
        self.fabrics = Fabrics(self.caches)
        self.unsettled = Unsettled(self.caches)
        Triggers(self.caches, self.queue, self.unsettled)

    async def follow(self) -> None:
        """Keep the caches, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for cache in self.caches:
                tasks.create_task(cache.run())


@pytest.mark.invariant(14)
@virtual_time
async def test_a_node_event_wakes_whom_it_concerns_and_no_other() -> None:
    groups = 8
    world = World()
    add_domain_and_groups(world, groups)
    async with world.running(), world.operator():
        await world.until(
            lambda: all(world.service_ready(f"shop{n:02d}") for n in range(groups)), 300
        )
        core = Watching(world)
        following = asyncio.create_task(core.follow())
        await core.caches.wait_synced()
        queue = core.queue
        await asyncio.sleep(60)  # the operator has told all it has to tell
        while len(queue):
            queue.done(await queue.get())
        node = world.instances()[0]["spec"]["nodeName"]
        here = {
            p["metadata"]["labels"]["pdserve.io/service"] + "-chat"
            for p in world.instances()
            if p["spec"]["nodeName"] == node
        }
        elsewhere = sorted({f"shop{n:02d}-chat" for n in range(groups)} - here)
        for key in core.unsettled.groups:
            core.unsettled.looked_at(key, settled=key.name != elsewhere[0])
        world.patch(
            NODES, "", node,
            {"status": {"conditions": [
                {"type": "Ready", "status": "Unknown", "lastTransitionTime": stamp()}]}},
            subresource="status",
        )  # fmt: skip
        await asyncio.sleep(30)
        woken = set()
        while len(queue):
            found = await queue.get()
            woken |= {found.name} if found.kind == triggers.GROUP else set()
            queue.done(found)
        assert here and len(elsewhere) > 1
        assert woken == here | {elsewhere[0]}
        following.cancel()


@virtual_time
async def test_groups_at_rest_do_not_look_when_a_node_changes_that_is_not_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[str] = []
    look = worker.RECONCILERS[triggers.GROUP]

    async def noted(context: OperatorContext, key: ObjectKey) -> float | None:
        looked.append(key.name)
        return await look(context, key)

    monkeypatch.setitem(cast("dict[str, Any]", worker.RECONCILERS), triggers.GROUP, noted)
    world = World()
    add_domain_and_groups(world, 2)
    async with world.running(), world.operator():
        await world.until(lambda: all(world.service_ready(f"shop{n:02d}") for n in range(2)), 300)
        await asyncio.sleep(60)
        used = {p["spec"]["nodeName"] for p in world.instances()}
        free = next(
            n["metadata"]["name"] for n in world.seen(NODES) if n["metadata"]["name"] not in used
        )
        looked.clear()
        world.patch(NODES, "", free, {"spec": {"unschedulable": True}})
        await asyncio.sleep(30)
        assert not looked
        world.patch(NODES, "", min(used), {"spec": {"unschedulable": True}})
        await asyncio.sleep(30)
        assert looked


@virtual_time
async def test_a_group_that_waits_looks_at_once_when_a_node_comes() -> None:
    world = World()
    world.domain()
    world.create(PDSERVICES, service())
    async with world.running(), world.operator():
        await world.until(
            lambda: world.condition(SCENARIO_GROUPS, "shop-chat", "Placed").get("status") == "False"
        )
        await asyncio.sleep(30)
        world.node("a", "a-0", 8)
        assert await world.until(lambda: len(world.instances()) == 2, 60) < 1


def same(one: Fabric, other: Fabric) -> bool:
    """Equal in all that placement asks."""
    resource = "huawei.com/Ascend910"
    return (
        one.version == other.version
        and dict(one.nodes) == dict(other.nodes)
        and all(one.free(n, resource) == other.free(n, resource) for n in other.nodes)
    )


@pytest.mark.parametrize("seed", range(2))
def test_a_kept_tree_equals_one_built_anew(seed: int) -> None:
    virtual_time(_kept_tree)(seed)


async def _kept_tree(seed: int) -> None:
    rng = random.Random(seed)
    world = World(seed=seed)
    add_domain_and_groups(world, 1)
    async with world.running(), world.operator():
        core = Watching(world)
        following = asyncio.create_task(core.follow())
        await core.caches.wait_synced()
        kept = core.fabrics

        def domain() -> RoCEDomain:
            return RoCEDomain.parse(world.get(ROCE_DOMAINS, "az1", "") or {})

        def anew() -> Fabric:
            spec = fabric_spec(domain())
            pods = core.caches.pods.list()
            bound: dict[str, list[PodView]] = {}
            for pod in pods:
                bound.setdefault(pod.node, []).append(pod)
            nodes = [
                node_view(world.get(NODES, node.name, "") or {}, bound.get(node.name, ()))
                for node in core.caches.nodes.list()
            ]
            return build_fabric(spec, nodes, [r for pod in pods for r in reservation_of(pod)])

        for _ in range(40):
            _change(world, rng)
            await asyncio.sleep(rng.uniform(0, 3))
            assert same(kept.of(fabric_spec(domain())), anew())
        settled = kept.of(fabric_spec(domain()))
        assert kept.of(fabric_spec(domain())) is settled, "built once"
        assert isinstance(kept, Fabrics)
        following.cancel()


def _change(world: World, rng: random.Random) -> None:
    """Something that a tree is made of, or nothing of it, changes."""
    nodes = [n["metadata"]["name"] for n in world.seen(NODES)]
    pods: list[Object] = world.instances()
    match rng.randrange(5):
        case 0:
            moved = {"metadata": {"labels": {"fabric/leaf": rng.choice("abcd")}}}
            world.patch(NODES, "", rng.choice(nodes), moved)
        case 1:
            cordoned = {"spec": {"unschedulable": rng.random() < 0.5}}
            world.patch(NODES, "", rng.choice(nodes), cordoned)
        case 2 if pods:
            world.delete_pod(rng.choice(pods)["metadata"]["name"])
        case 3 if pods:
            body = {"metadata": {"labels": {"note": str(rng.random())}}}
            world.patch(PODS, NS, rng.choice(pods)["metadata"]["name"], body)
        case _:
            name = rng.choice(nodes)
            gone = world.get(NODES, name, "")
            if gone is not None and rng.random() < 0.3 and len(nodes) > 10:
                world.api.handle(KubeRequest("delete", NODES, None, name))
