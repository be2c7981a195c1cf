"""Edits of a ScenarioGroup's counts are no decisions: they make and delete no pod."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from pdserve.api import PDService, ScenarioGroup
from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.desired.service_desired import acting_counts
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.kube.request import KubeRequest
from pdserve.ratio.types import Counts

FIXED = {"mode": "Fixed", "fixed": {"groups": 2, "prefill": 1, "decode": 1}}
FIELDS = ("replicas", "prefill", "decode")


def make(**ratio: Any) -> World:
    world = World()
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    world.create(PDSERVICES, service(devices=1, groups=(2, 3), ratio=ratio))
    # What puts an edit back takes its time: until then plans are made from the edited object.
    world.delay = lambda r: 1.5 if _puts_back(r) else 0.0
    return world


def _puts_back(request: KubeRequest) -> bool:
    changes = request.verb == "patch" and request.subresource is None
    return changes and request.resource == SCENARIO_GROUPS


def uids(world: World) -> set[str]:
    return {p["metadata"]["uid"] for p in world.instances() if not leaving(p)}


def leaving(pod: dict[str, Any]) -> bool:
    meta = pod["metadata"]
    return "deletionTimestamp" in meta or "pdserve.io/drain-started" in meta.get("annotations", {})


def edit(world: World, field: str, value: int) -> None:
    spec = {field: value} if field == "replicas" else {field: {"replicas": value}}
    world.patch(SCENARIO_GROUPS, NS, "shop-chat", {"spec": spec})


@pytest.mark.invariant(13)
@pytest.mark.parametrize("ratio", [{"mode": "Auto"}, {"mode": "Advise"}, FIXED])
@pytest.mark.parametrize("field", FIELDS)
def test_edits_of_the_counts_make_and_delete_no_pod(ratio: dict[str, Any], field: str) -> None:
    @virtual_time
    async def run() -> None:
        rng = random.Random(field)
        world = make(**ratio)
        async with world.running(), world.operator() as task:
            await world.until(world.service_ready)
            before, routed = uids(world), world.routed()
            assert len(before) == 4
            lowest = 0 if field == "replicas" else 1
            values = [lowest] + [rng.randint(lowest, 4) for _ in range(19)]
            for value in values:
                edit(world, field, value)
                for _ in range(rng.randint(1, 40)):
                    await asyncio.sleep(0.05)
                    assert uids(world) == before
                    assert world.routed() == routed
            await asyncio.sleep(120)
            assert not task.done()
            assert uids(world) == before
            assert len(world.ever) == 4
            applied = world.existing(SCENARIO_GROUPS, "shop-chat")["status"]["decisions"]
            assert {d["to"]["groups"] for d in applied if d["outcome"] == "Applied"} == {2}

    run()


@pytest.mark.invariant(13)
@virtual_time
async def test_an_edit_while_no_operator_runs_makes_and_deletes_no_pod() -> None:
    world = make(mode="Auto")
    async with world.running():
        async with world.operator():
            await world.until(world.service_ready)
        before = uids(world)
        edit(world, "replicas", 0)
        async with world.operator():
            await asyncio.sleep(60)
            assert uids(world) == before
            assert world.service_ready()


@pytest.mark.invariant(13)
@virtual_time
async def test_edits_of_the_rest_of_the_spec_roll_and_delete_nothing() -> None:
    world = make(mode="Auto")
    async with world.running(), world.operator() as task:
        await world.until(world.service_ready)
        before, routed = uids(world), world.routed()
        edits: list[dict[str, Any]] = [
            {"engine": {"image": "other/engine:1"}},
            {"model": {"name": "other"}},
            {"prefill": {"maxConcurrency": 1}},
            {"decode": {"instance": {"devicesPerNode": 8}}},
            {"fabric": {"domainRef": {"name": "az9"}}},
        ]
        for spec in edits * 4:
            world.patch(SCENARIO_GROUPS, NS, "shop-chat", {"spec": spec})
            for _ in range(40):
                await asyncio.sleep(0.05)
                assert uids(world) == before
                assert world.routed() == routed
        await asyncio.sleep(60)
        assert not task.done()
        assert len(world.ever) == 4
        assert world.service_ready()


@virtual_time
async def test_in_external_the_spec_decides_down_to_no_group() -> None:
    """K6.4."""
    world = make(mode="External")
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        edit(world, "replicas", 1)
        await world.until(lambda: len(world.routed()) == 2, 60)
        edit(world, "replicas", 0)
        await world.until(lambda: not world.instances(), 200)
        await asyncio.sleep(5)
        ready = world.condition(PDSERVICES, "shop", "Ready")
        assert (ready["status"], ready["reason"]) == ("False", "ScaledToZero")
        assert "503" in ready["message"]
        assert world.condition(PDSERVICES, "shop", "Progressing")["status"] == "False"
        edit(world, "replicas", 1)
        await world.until(world.service_ready, 60)


FOUND, DECIDED, WANTED = Counts(0, 1, 1), Counts(3, 2, 1), Counts(2, 1, 1)


def group(*, live: Counts | None, applied: Counts | None) -> ScenarioGroup:
    spec = service()["spec"]
    kept = {k: spec[k] for k in ("model", "engine", "prefill", "decode", "fabric")}
    if live is not None:
        kept["replicas"] = live.groups
        kept["prefill"] = {**kept["prefill"], "replicas": live.prefill}
        kept["decode"] = {**kept["decode"], "replicas": live.decode}
    decisions = []
    if applied is not None:
        to = {"groups": applied.groups, "prefill": applied.prefill, "decode": applied.decode}
        decisions = [
            {"time": "2026-01-01T00:00:00Z", "from": to, "to": to, "outcome": "Applied",
             "reason": "Test"}
        ]  # fmt: skip
    return ScenarioGroup.parse(
        {
            "apiVersion": "pdserve.io/v1alpha1",
            "kind": "ScenarioGroup",
            "metadata": {"name": "shop-chat", "namespace": NS},
            "spec": {**kept, "service": "shop", "scenario": "chat"},
            "status": {"decisions": decisions},
        }
    )


@pytest.mark.parametrize(
    ("mode", "owned", "live", "applied", "want"),
    [
        ("Auto", True, FOUND, DECIDED, DECIDED),
        ("Advise", True, FOUND, DECIDED, DECIDED),
        ("Fixed", True, FOUND, WANTED, WANTED),
        ("Fixed", True, FOUND, None, WANTED),
        ("External", True, FOUND, DECIDED, FOUND),
        ("Auto", True, None, None, None),
        ("Auto", True, FOUND, None, Counts(2, 1, 1)),  # lost status: the found, inside bounds
        ("Auto", False, FOUND, DECIDED, FOUND),  # written by hand
        (None, True, FOUND, DECIDED, DECIDED),  # its PDService cannot be read
        (None, True, FOUND, None, FOUND),
    ],
)
def test_whose_counts_are_in_force(
    mode: str | None, owned: bool, live: Counts | None, applied: Counts | None, want: Counts | None
) -> None:
    scenario = None
    if mode is not None:
        ratio = {"mode": mode, "fixed": FIXED["fixed"]}
        scenario = PDService.parse(service(groups=(2, 3), ratio=ratio)).spec.scenarios[0]
    assert acting_counts(group(live=live, applied=applied), scenario, owned=owned) == want
