"""Windows by clock inside the operator: instances serve when one opens, and the record names it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from tests.support.ratio_values import sample
from tests.unit.controllers.ratio.test_ratio_loop import (
    FAST,
    Scripted,
    counts,
    decisions,
    make,
    total,
)

from pdserve.api import Scenario
from pdserve.controllers.ratio.schedules import Schedules
from pdserve.controllers.shared.caches import PDSERVICES
from pdserve.dst.moments import now
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.ratio.types import LoopSettings, Unknown
from pdserve.ratio.windows import NO_WINDOWS
from pdserve.telemetry.source import ScenarioKey

KEY = ScenarioKey("default", "shop", "chat")


def day(start: str, end: str, **least: int) -> dict[str, Any]:
    return {"name": "day", "timeZone": "UTC", "from": start, "to": end, "least": least}


def scenario(*windows: dict[str, Any]) -> Scenario:
    return Scenario.parse(service(schedule=windows)["spec"]["scenarios"][0])


def clock(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%H:%M:%S")


def shop(*windows: dict[str, Any]) -> World:
    """The world begins at 00:16:40."""
    return make(schedule=windows)


@virtual_time
async def test_instances_serve_when_a_window_opens_though_the_scenario_rested() -> None:
    world, source = shop(day("00:40", "01:00", prefill=3, decode=2)), Scripted()
    quiet = sample(at=0.0, rate=2.0)
    source.say = lambda: quiet
    async with world.running(), world.operator(source=source, settings=FAST):
        await world.until(lambda: clock(now()) >= "00:39:00", 1400, "a minute ahead")
        groups, prefill, decode = counts(world)
        assert prefill == 1
        await world.until(lambda: clock(now()) >= "00:40:00", 70, "the window opens")
        wanted = groups, 3, max(decode, 2)
        assert counts(world) == wanted
        assert len(world.routed()) == total(1, wanted) + total(2, wanted), "all serve at its start"
        change = [d for d in decisions(world) if d["outcome"] == "Applied"][-1]
        assert change["reason"] == "TidalWindow"
        assert "window day" in change["message"]
        await world.until(lambda: clock(now()) >= "00:59:50", 1200, "its end")
        assert counts(world)[1:] == (3, wanted[2])
        await world.until(lambda: counts(world)[1] < 3, 400, "the ordinary rule takes them back")


@virtual_time
async def test_the_counts_of_a_window_need_no_metrics() -> None:
    world, source = shop(day("00:30", "00:40", prefill=2)), Scripted()
    source.say = lambda: Unknown("away")
    async with world.running(), world.operator(source=source, settings=FAST):
        await world.until(world.service_ready)
        assert counts(world)[1] == 1
        await world.until(lambda: clock(now()) >= "00:30:00", 900, "the window opens")
        assert counts(world)[1] == 2
        await asyncio.sleep(1500)
        assert counts(world)[1] == 2, "without metrics nothing shrinks"


@virtual_time
async def test_a_schedule_that_is_taken_away_holds_nothing_any_more() -> None:
    world, source = shop(day("00:00", "24:00", prefill=3)), Scripted()
    async with world.running(), world.operator(source=source, settings=FAST):
        await world.until(lambda: len(world.routed()) >= 4, 300, "three prefills serve")
        scenarios = world.existing(PDSERVICES, "shop")["spec"]["scenarios"]
        without = [{k: v for k, v in s.items() if k != "schedule"} for s in scenarios]
        world.patch(PDSERVICES, NS, "shop", {"spec": {"scenarios": without}})
        await world.until(lambda: counts(world)[1] < 3, 900, "what the load needs")


def test_what_holds_is_reckoned_again_only_when_it_may_change() -> None:
    known, wanted = Schedules(), scenario(day("08:00", "22:00", groups=2))
    settings, morning = LoopSettings(), 7 * 3600.0
    first = known.now(KEY, wanted, settings, morning)
    assert first.floor is None
    assert known.now(KEY, wanted, settings, morning + 60) is first
    assert known.now(KEY, wanted, settings, first.next_change).floor is not None
    longer = replace(settings, cold_start=3000.0)
    assert known.now(KEY, wanted, longer, morning).floor is not None, "a start takes an hour"
    assert known.now(KEY, scenario(), settings, morning) is NO_WINDOWS


def test_modes_that_follow_no_load_follow_no_window() -> None:
    parsed = scenario(day("00:00", "24:00", groups=2))
    for mode in ("Fixed", "External"):
        other = parsed.model_copy(update={"ratio": parsed.ratio.model_copy(update={"mode": mode})})
        assert Schedules().now(KEY, other, LoopSettings(), 0.0).floor is None
