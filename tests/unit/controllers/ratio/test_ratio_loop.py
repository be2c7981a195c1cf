"""The ratio loop inside the operator: scripted measurements in, counts and records out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from tests.support.ratio_values import prefill_window, sample, window

from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.dst.moments import now
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.kube.resource import CONFIGMAPS
from pdserve.ratio.records import replay
from pdserve.ratio.types import LoopSettings, ScenarioSample, Unknown
from pdserve.telemetry.source import LiveInstances, ScenarioKey

FAST = LoopSettings(
    control_period=60, fast_period=15, window=60, grow_dwell=60, shrink_dwell=300, cold_start=20
)


class Scripted:
    """A metrics source that says what the test wants now."""

    def __init__(self) -> None:
        self.say: Callable[[], ScenarioSample | Unknown] = healthy
        self.asked: list[Mapping[ScenarioKey, LiveInstances]] = []

    async def sample(
        self, live: Mapping[ScenarioKey, LiveInstances]
    ) -> Mapping[ScenarioKey, ScenarioSample | Unknown]:
        self.asked.append(live)
        return {key: self.say() for key in live}

    async def close(self) -> None:
        pass


def healthy() -> ScenarioSample:
    return sample(at=now(), rate=2.0)


def prefill_short(rate: float = 12.0) -> ScenarioSample:
    """Many miss their first token: prefill rejects, decode has room."""
    windows = tuple(window(s, rate, 0.5) for s in (60.0, 180.0, 600.0))
    busy = prefill_window(requests=60.0 * rate)
    return sample(windows, at=now(), expired=300.0, prefill=busy)


def make(**spec: Any) -> World:
    world = World()
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    world.create(PDSERVICES, service(devices=2, **spec))
    return world


def decisions(world: World) -> list[dict[str, Any]]:
    group = world.get(SCENARIO_GROUPS, "shop-chat") or {}
    return list(group.get("status", {}).get("decisions", []))


def counts(world: World) -> tuple[int, int, int]:
    spec = world.existing(SCENARIO_GROUPS, "shop-chat")["spec"]
    return spec["replicas"], spec["prefill"]["replicas"], spec["decode"]["replicas"]


def total(which: int, c: tuple[int, int, int]) -> int:
    return c[0] * c[which]


@virtual_time
async def test_a_missed_slo_grows_what_is_short_and_says_why() -> None:
    world, source = make(), Scripted()
    async with world.running(), world.operator(source=source, settings=FAST):
        await world.until(world.service_ready)
        await asyncio.sleep(300)
        before = counts(world)
        source.say = prefill_short
        await world.until(lambda: counts(world) != before, 180, "a change")
        after = counts(world)
        assert total(1, after) > total(1, before)
        change = [d for d in decisions(world) if d["outcome"] == "Applied"][-1]
        assert change["to"] == dict(zip(("groups", "prefill", "decode"), after, strict=True))
        assert change["reason"] in ("PrefillShortage", "ModelFloor")
        assert change["inputs"]
        source.say = healthy
        wanted = total(1, after) + total(2, after)
        await world.until(lambda: len(world.routed()) == wanted, 60, "the new instances serve")
        assert world.service_ready()


@virtual_time
async def test_only_warm_instances_are_asked_about() -> None:
    world, source = make(), Scripted()
    async with world.running(), world.operator(source=source, settings=FAST):
        await world.until(world.service_ready)
        await asyncio.sleep(30)
        (key, cold), *_ = source.asked[-1].items()
        assert key == (NS, "shop", "chat")
        assert cold.prefill == cold.decode == frozenset()
        await asyncio.sleep(60)
        warm = source.asked[-1][key]
        assert warm.prefill | warm.decode == world.routed()
        assert warm.gateways == {"shop-gateway-0"}


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
@virtual_time
async def test_the_dwell_stays_in_its_bound_over_a_clock_step_and_a_restart(step: float) -> None:
    """Decisions are stamped with the wall clock of whichever operator made them."""
    world, source = make(), Scripted()
    async with world.running():
        async with world.operator(source=source, settings=FAST):
            await world.until(world.service_ready)
            await asyncio.sleep(300)
            before = counts(world)
            source.say = lambda: prefill_short(2.2)
            await world.until(lambda: counts(world) != before, 180, "a change")
            source.say = healthy
            await world.until(world.service_ready, 60, "the new instances serve")
        world.step_clock(step)
        grown = counts(world)
        async with world.operator(source=source, settings=FAST):
            source.say = prefill_short
            limit = FAST.grow_dwell + FAST.evidence_window + 6 * FAST.window
            await world.until(lambda: counts(world) != grown, limit, "the next change")


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
@virtual_time
async def test_a_held_round_is_reported_again_over_a_clock_step_and_a_restart(step: float) -> None:
    world, source = make(), Scripted()
    async with world.running():
        async with world.operator(source=source, settings=FAST):
            await world.until(world.service_ready)
            await world.until(lambda: decisions(world)[-1]["outcome"] == "Held", 180, "an entry")
            assert decisions(world)[-1]["reason"] != "ExternalOwner"
        world.step_clock(step)
        obj = world.get(PDSERVICES, "shop") or {}
        scenarios = [
            {**s, "ratio": {**s["ratio"], "mode": "External"}} for s in obj["spec"]["scenarios"]
        ]
        world.patch(PDSERVICES, NS, "shop", {"spec": {"scenarios": scenarios}})
        async with world.operator(source=source, settings=FAST):
            told = lambda: decisions(world)[-1]["reason"] == "ExternalOwner"  # noqa: E731
            await world.until(told, 180, "who owns the counts now")


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
@virtual_time
async def test_instances_get_warm_in_a_window_whatever_their_nodes_clocks_say(step: float) -> None:
    """Ready is stamped by a kubelet, the operator's clock goes on from where it started."""
    world, source = make(), Scripted()
    world.step_clock(step)
    async with world.running(), world.operator(source=source, settings=FAST):
        await world.until(world.service_ready)
        source.asked.clear()
        await asyncio.sleep(FAST.window + 2 * FAST.fast_period)
        (live,) = source.asked[-1].values()
        assert live.prefill | live.decode == world.routed()
        (first,) = source.asked[0].values()
        assert first.prefill == first.decode == frozenset()


@pytest.mark.invariant(6)
@virtual_time
async def test_without_data_nothing_scales_and_the_status_says_so_once() -> None:
    world, source = make(), Scripted()
    async with world.running(), world.operator(source=source, settings=FAST):
        await world.until(world.service_ready)
        await asyncio.sleep(120)
        before = counts(world)
        source.say = lambda: Unknown("Prometheus did not answer: connection refused")
        await asyncio.sleep(1800)
        assert counts(world) == before
        held = [d for d in decisions(world) if d["reason"] == "HoldNoData"]
        assert len(held) == 1
        assert "connection refused" in held[0]["message"]
        slo = world.condition(PDSERVICES, "shop", "SLOMet")
        assert (slo["status"], slo["reason"]) == ("Unknown", "NotMeasured")
        # It is wrong: half of the instances are missing from the answer.
        source.say = lambda: replace(prefill_short(), missing_count=2, missing=("x", "y"))
        await asyncio.sleep(600)
        assert counts(world) == before


@virtual_time
async def test_an_idle_outage_of_prometheus_costs_no_writes() -> None:
    world, source = make(), Scripted()
    source.say = lambda: Unknown("connection refused")
    async with world.running(), world.operator(source=source, settings=FAST):
        await world.until(world.service_ready)
        await asyncio.sleep(120)
        writes = len(world.recorders[-1].writes())
        await asyncio.sleep(1800)
        assert len(world.recorders[-1].writes()) == writes


@virtual_time
async def test_advise_records_without_acting() -> None:
    world, source = make(ratio={"mode": "Advise"}), Scripted()
    async with world.running(), world.operator(source=source, settings=FAST):
        await world.until(world.service_ready)
        before = counts(world)
        source.say = prefill_short
        await world.until(
            lambda: any(d["outcome"] == "Advised" for d in decisions(world)), 300, "advice"
        )
        await asyncio.sleep(120)
        assert counts(world) == before
        advice = world.condition(PDSERVICES, "shop", "AdviceAvailable")
        assert advice["status"] == "True"
        assert "is advised" in advice["message"]


@virtual_time
async def test_the_slo_condition_and_the_printed_attainment_follow_the_measurement() -> None:
    world, source = make(ratio={"mode": "External"}), Scripted()
    async with world.running(), world.operator(source=source, settings=FAST):
        await world.until(world.service_ready)
        await world.until(
            lambda: world.condition(PDSERVICES, "shop", "SLOMet").get("status") == "True", 60
        )
        source.say = prefill_short
        await world.until(
            lambda: world.condition(PDSERVICES, "shop", "SLOMet").get("status") == "False", 60
        )
        status = world.existing(PDSERVICES, "shop")["status"]
        assert status["scenarios"][0]["attainmentPercent"] == 50
        assert status["summary"]["slo"] == "50%"
        message = world.condition(PDSERVICES, "shop", "SLOMet")["message"]
        assert message == "chat: 50% of offered requests, target 99%"


@virtual_time
async def test_a_restart_keeps_the_decided_counts_and_the_profile() -> None:
    world, source = make(), Scripted()
    async with world.running():
        async with world.operator(source=source, settings=FAST):
            await world.until(world.service_ready)
            before = counts(world)
            source.say = prefill_short
            await world.until(lambda: counts(world) != before, 300)
            source.say = healthy
            await asyncio.sleep(200)
        decided = counts(world)
        profile = world.existing(CONFIGMAPS, "shop-chat-profile")
        async with world.operator(source=source, settings=FAST):
            await asyncio.sleep(30)
            assert counts(world) == decided
            kept = world.existing(CONFIGMAPS, "shop-chat-profile")
            assert kept["metadata"]["uid"] == profile["metadata"]["uid"]


@pytest.mark.invariant(8)
@virtual_time
async def test_every_logged_decision_replays_to_the_same_bytes() -> None:
    world, source = make(), Scripted()
    lines: list[str] = []
    async with world.running():
        task = asyncio.create_task(world.operate(None, source, FAST, lines.append))
        await world.until(world.service_ready)
        source.say = prefill_short
        await asyncio.sleep(300)
        task.cancel()
        await asyncio.wait((task,))
    assert len(lines) > 15
    assert all(replay(line)[2] for line in lines)
    outcomes = {replay(line)[0].outcome for line in lines}
    assert "Applied" in outcomes


@virtual_time
async def test_a_shortage_of_devices_blocks_the_change_and_names_it() -> None:
    world, source = World(), Scripted()
    world.nodes(["a"], per_leaf=1, devices=4)  # 1P1D of 2 devices fills it
    world.domain()
    world.create(PDSERVICES, service(devices=2))
    async with world.running(), world.operator(source=source, settings=FAST):
        await world.until(world.service_ready)
        source.say = prefill_short
        await world.until(
            lambda: any(d["outcome"] == "Blocked" for d in decisions(world)), 300, "blocked"
        )
        blocked = next(d for d in decisions(world) if d["outcome"] == "Blocked")
        assert blocked["reason"] == "PlacementInfeasible"
        assert counts(world) == (1, 1, 1)
