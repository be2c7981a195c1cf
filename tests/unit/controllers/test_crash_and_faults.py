"""The operator is killed, run twice, cut off and misinformed; the cluster always ends as wanted."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator

import pytest

from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.dst.api_net import Faults
from pdserve.dst.recorder import Recorder
from pdserve.dst.virtual_time import run_virtual, virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.kube.errors import KubeError
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import (
    CONFIGMAPS,
    DEPLOYMENTS,
    POD_DISRUPTION_BUDGETS,
    PODS,
    ROLE_BINDINGS,
    ROLES,
    SECRETS,
    SERVICE_ACCOUNTS,
    SERVICES,
    Object,
    Resource,
)
from pdserve.wire import names

FIXED = {"mode": "Fixed", "fixed": {"groups": 2, "prefill": 2, "decode": 1}}
WANTED = 2 * (2 + 1)
OWNED: tuple[Resource, ...] = (
    SCENARIO_GROUPS, PODS, CONFIGMAPS, SECRETS, DEPLOYMENTS, SERVICES, SERVICE_ACCOUNTS,
    ROLES, ROLE_BINDINGS, POD_DISRUPTION_BUDGETS,
)  # fmt: skip


def make(seed: int) -> World:
    world = World(seed=seed)
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    world.create(PDSERVICES, service(ratio=FIXED))
    return world


async def count_writes() -> int:
    world = make(0)
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        await asyncio.sleep(5)
    return len(world.recorders[-1].writes())


def is_settled(world: World) -> bool:
    pods = {p["metadata"]["name"] for p in world.instances()}
    return world.service_ready() and len(pods) == WANTED and world.routed() == pods


def check_clean(world: World) -> None:
    """Nothing twice, nothing without its owner."""
    pods = world.instances()
    assert len(pods) == WANTED, world.dump()
    slots = [p["metadata"]["name"].rpartition("-")[0] for p in pods]
    assert len(set(slots)) == WANTED
    live = {o["metadata"]["uid"] for r in (*OWNED, PDSERVICES) for o in world.api.objects(r)}
    for resource in OWNED:
        for obj in world.api.objects(resource):
            owners = obj["metadata"].get("ownerReferences")
            assert owners, f"{resource.kind} {obj['metadata']['name']} has no owner"
            assert all(o["uid"] in live for o in owners)


def crash_points(count: int) -> list[tuple[int, int, bool]]:
    """`(seed, which write, after it took effect)`, drawn over the whole set-up."""
    rng = random.Random(20261121)
    return [(seed, rng.randrange(1, 55), rng.random() < 0.5) for seed in range(count)]


@pytest.mark.invariant(4)
@pytest.mark.parametrize(("seed", "write", "after"), crash_points(50))
def test_killed_in_mid_set_up(seed: int, write: int, after: bool) -> None:
    run_virtual(_killed(seed, write, after))


async def _killed(seed: int, write: int, after: bool) -> None:
    world = make(seed)
    faults = Faults(
        seed=seed, latency=(0.0, 0.02), watch_delay=(0.0, 0.1),
        crash_at=write, crash_after_effect=after,
    )  # fmt: skip
    async with world.running():
        async with world.operator(faults) as task:
            # A write that is refused anyway has no effect to die after: then die just behind it.
            await world.until(lambda: task.done() or faults.writes > write, 60, "the crash")
        assert faults.crashed or faults.writes > write
        await asyncio.sleep(random.Random(seed).uniform(0, 5))
        async with world.operator():
            await world.until(lambda: is_settled(world), 90, f"after a crash at write {write}")
            await asyncio.sleep(60)
            check_clean(world)
            assert is_settled(world)
            # Nothing that ran was ever made again under another name.
            assert len(world.ever) == WANTED


@virtual_time
async def test_the_crash_points_cover_the_set_up() -> None:
    writes = await count_writes()
    drawn = {write for _, write, _ in crash_points(50)}
    assert writes >= max(drawn), "every drawn point must be reached"
    assert min(drawn) < 5
    assert max(drawn) > 50


@pytest.mark.parametrize("seed", range(8))
def test_a_bad_network_only_delays(seed: int) -> None:
    run_virtual(_bad_network(seed))


async def _bad_network(seed: int) -> None:
    world = make(seed)
    faults = Faults(
        seed=seed, latency=(0.0, 0.05), refuse=0.1, lose_answer=0.1, watch_delay=(0.0, 0.3),
        watch_break=0.05, watch_repeat=0.1, watch_swap=0.1, expire=0.3,
    )  # fmt: skip
    async with world.running(), world.operator(faults):
        await world.until(lambda: is_settled(world), 600, "despite the network")
        await asyncio.sleep(60)
        check_clean(world)


@pytest.mark.parametrize("seed", range(5))
def test_two_operators_at_once_do_no_harm(seed: int) -> None:
    """A Lease is no fence: for a moment both may act."""
    run_virtual(_two_operators(seed))


async def _two_operators(seed: int) -> None:
    world = make(seed)
    slow = Faults(seed=seed, latency=(0.0, 0.2), watch_delay=(0.0, 0.5))
    other = Faults(seed=seed + 100, latency=(0.0, 0.2), watch_delay=(0.0, 0.5))
    async with world.running(), world.operator(slow), world.operator(other):
        await world.until(lambda: is_settled(world), 120, "with two operators")
        await asyncio.sleep(60)
        check_clean(world)
        # Both may have chosen the same devices: the scheduler gave them to one. What was bound
        # is what serves; nothing that ran was replaced.
        serving = {p["metadata"]["name"] for p in world.instances()}
        assert world.ran == serving


@virtual_time
async def test_an_api_server_that_is_away_at_the_start_is_waited_for() -> None:
    world = make(0)
    faults = Faults()
    faults.down = True
    async with world.running(), world.operator(faults) as task:
        await asyncio.sleep(120)
        assert not task.done()
        assert world.instances() == []
        faults.down = False
        world.api.wake_watches()
        await world.until(lambda: is_settled(world), 90, "once it is back")


@virtual_time
async def test_an_outage_of_the_api_server_touches_nothing_that_runs() -> None:
    world = make(0)
    faults = Faults()
    async with world.running(), world.operator(faults) as task:
        await world.until(lambda: is_settled(world))
        before = {p["metadata"]["uid"] for p in world.instances()}
        faults.down = True
        world.api.wake_watches()
        await asyncio.sleep(900)
        faults.down = False
        world.api.wake_watches()
        await asyncio.sleep(60)
        assert not task.done()
        assert {p["metadata"]["uid"] for p in world.instances()} == before
        assert is_settled(world)


@virtual_time
async def test_a_deletion_missed_while_away_is_noticed() -> None:
    world = make(0)
    async with world.running():
        async with world.operator():
            await world.until(lambda: is_settled(world))
        victim = world.instances()[0]["metadata"]["name"]
        world.delete_pod(victim)
        await world.until(lambda: world.get(PODS, victim) is None, 30)
        async with world.operator():
            await world.until(lambda: is_settled(world), 60, "replaced")
            check_clean(world)


@pytest.mark.parametrize("verb", ["create", "patch"])
@virtual_time
async def test_one_version_of_a_peer_table_never_has_two_contents(verb: str) -> None:
    """An instance that took the first would never take the second, and its peers never link.

    What comes in between is a write of another operator, or one of ours whose answer was lost.
    """
    world = make(0)
    texts: dict[tuple[str, int], set[str]] = {}
    ahead: list[str] = []

    def note(table: Object) -> None:
        version = json.loads(table["data"][names.KEY_PEERS])["version"]
        uid = table["metadata"]["uid"]
        texts.setdefault((uid, version), set()).add(table["data"][names.KEY_PEERS])

    def wrote(request: KubeRequest, _before: Object | None, answer: Object) -> None:
        if request.resource == CONFIGMAPS and names.KEY_PEERS in answer.get("data", {}):
            note(answer)

    def before_it(request: KubeRequest) -> float:
        data = (request.body or {}).get("data", {}) if isinstance(request.body, dict) else {}
        if request.resource == CONFIGMAPS and request.verb == verb and names.KEY_PEERS in data:
            name = request.body["metadata"]["name"]
            if name not in ahead:
                ahead.append(name)
                note(_other_table(world, request.body))
        return 0.0

    world.on_write, world.delay = wrote, before_it
    async with world.running(), world.operator():
        await world.until(lambda: is_settled(world), 60, "all linked")
        world.delete_pod(world.instances()[0]["metadata"]["name"])
        await world.until(lambda: not is_settled(world), 60)
        await world.until(lambda: is_settled(world), 60, "all linked again")
    assert ahead
    assert {key: found for key, found in texts.items() if len(found) > 1} == {}


def _other_table(world: World, wanted: Object) -> Object:
    """Write the table before the operator does, without one of its instances."""
    table = json.loads(wanted["data"][names.KEY_PEERS])
    table["instances"].pop()
    data = {names.KEY_PEERS: json.dumps(table)}
    name, namespace = wanted["metadata"]["name"], wanted["metadata"]["namespace"]
    if world.get(CONFIGMAPS, name) is None:
        return world.create(CONFIGMAPS, {**wanted, "data": data})
    return world.patch(CONFIGMAPS, namespace, name, {"data": data})


@virtual_time
async def test_no_planned_change_rests_on_pods_that_may_be_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After an outage the watch of the counts is back before that of pods (seed 200348)."""
    world, faults, late = make(0), Faults(), False
    inner = Recorder.stream

    def stream(recorder: Recorder, request: KubeRequest) -> AsyncIterator[Object]:
        if late and request.resource is PODS:
            raise KubeError(503, "ServiceUnavailable", "not yet")
        return inner(recorder, request)

    monkeypatch.setattr(Recorder, "stream", stream)
    async with world.running(), world.operator(faults):
        await world.until(lambda: is_settled(world))
        gone, kept = (
            p["metadata"]["name"] for p in world.instances() if "-chat-0-p" in p["metadata"]["name"]
        )
        faults.down = late = True
        world.api.wake_watches()
        world.api.handle(KubeRequest("delete", PODS, NS, gone))
        fewer = {"mode": "Fixed", "fixed": {"groups": 2, "prefill": 1, "decode": 1}}
        world.patch(PDSERVICES, NS, "shop", {"spec": service(ratio=fewer)["spec"]})
        await asyncio.sleep(5)
        faults.down = False
        for _ in range(40):
            await asyncio.sleep(0.5)
            pod = world.get(PODS, kept)
            assert pod is not None
            assert names.ANNOTATION_DRAIN not in pod["metadata"].get("annotations", {})
        late = False
        await world.until(lambda: len(world.instances()) == 4, 120, "fewer prefills")
        assert kept in world.routed()
