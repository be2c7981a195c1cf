"""Scenarios rest while a round would come out the same, and no longer."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from tests.support.ratio_values import sample
from tests.unit.controllers.ratio.test_ratio_loop import FAST, Scripted, make

from pdserve.controllers.ratio.rest import rest_after
from pdserve.dst.virtual_time import virtual_time
from pdserve.ratio.types import Counts, Decision, Outcome, Reason, ScenarioSample, Unknown

GROUP: Any = {"metadata": {"namespace": "default", "name": "shop-chat"}}
SERVICE = object()
SAMPLE = sample(at=100.0, rate=2.0)
PERIOD = 60.0


def held(reason: Reason, outcome: Outcome = "Held") -> Decision:
    return Decision(100.0, Counts(1, 1, 2), Counts(1, 1, 2), outcome, reason, "why")


def test_a_steady_scenario_rests_while_nothing_but_time_changes() -> None:
    rest = rest_after(100.0, GROUP, SERVICE, SAMPLE, held(Reason.STEADY))
    assert rest is not None
    later = replace(SAMPLE, at=105.0, lag=3.0, age=9.0)
    assert rest.lasts(105.0, PERIOD, GROUP, SERVICE, later)
    assert not rest.lasts(100.0 + PERIOD, PERIOD, GROUP, SERVICE, later)
    assert not rest.lasts(99.0, PERIOD, GROUP, SERVICE, later), "the clock was set back"
    busier = replace(later, windows=sample(at=105.0, rate=2.1).windows)
    for changed in ((dict(GROUP), SERVICE, later), (GROUP, object(), later),
                    (GROUP, SERVICE, busier), (GROUP, SERVICE, Unknown("away"))):  # fmt: skip
        assert not rest.lasts(105.0, PERIOD, *changed)


def test_no_rest_lasts_beyond_the_next_change_of_a_window() -> None:
    rest = rest_after(100.0, GROUP, SERVICE, SAMPLE, held(Reason.STEADY), until=107.0)
    assert rest is not None
    assert rest.lasts(106.0, PERIOD, GROUP, SERVICE, SAMPLE)
    assert not rest.lasts(107.0, PERIOD, GROUP, SERVICE, SAMPLE)


def test_not_all_scenarios_are_due_at_the_same_time() -> None:
    groups: list[Any] = [{"metadata": {"namespace": "n", "name": f"g{k}"}} for k in range(100)]
    rests = [rest_after(0.0, g, SERVICE, SAMPLE, held(Reason.STEADY)) for g in groups]
    due = [
        sum(r is not None and not r.lasts(at, PERIOD, g, SERVICE, SAMPLE)
            for r, g in zip(rests, groups, strict=True))
        for at in (29.0, 45.0, 60.0)
    ]  # fmt: skip
    assert due[0] == 0
    assert 25 <= due[1] <= 75
    assert due[2] == 100


@pytest.mark.parametrize(
    ("seen", "decision", "rests"),
    [
        (SAMPLE, held(Reason.INFEASIBLE_REQUESTS), True),
        (SAMPLE, held(Reason.CONFIRMING_SURPLUS), False),
        (SAMPLE, held(Reason.IN_FLIGHT), False),
        (SAMPLE, held(Reason.DWELL), False),
        (SAMPLE, held(Reason.AT_MAXIMUM, "Blocked"), False),
        (SAMPLE, held(Reason.STEADY, "Applied"), False),
        (Unknown("no Prometheus"), held(Reason.HOLD_NO_DATA), True),
        (SAMPLE, held(Reason.HOLD_NO_DATA), False),
    ],
)
def test_what_waits_for_time_does_not_rest(
    seen: ScenarioSample | Unknown, decision: Decision, rests: bool
) -> None:
    assert (rest_after(100.0, GROUP, SERVICE, seen, decision) is not None) is rests


@virtual_time
async def test_rounds_of_an_unchanged_scenario_are_few_and_a_change_is_seen_at_once() -> None:
    world, source, lines = make(), Scripted(), list[str]()
    quiet = sample(at=0.0, rate=2.0)
    source.say = lambda: quiet
    settings = replace(FAST, fast_period=5.0)
    async with world.running():
        task = asyncio.create_task(world.operate(None, source, settings, lines.append))
        await world.until(world.service_ready)
        await asyncio.sleep(900)
        asked, before = len(source.asked), len(lines)
        await asyncio.sleep(300)
        assert len(source.asked) - asked >= 55, "every tick asks"
        assert 5 <= len(lines) - before <= 12
        before = len(lines)
        source.say = lambda: sample(at=0.0, rate=2.5)
        await asyncio.sleep(6)
        assert len(lines) > before
        task.cancel()
