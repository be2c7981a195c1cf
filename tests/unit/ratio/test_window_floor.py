"""What a window by clock changes in a decision, and in a loop that meets a step at its start."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.ratio_values import NPU, SLO, TODAY, decision_input, new, sample
from tests.unit.ratio.test_closed_loop import CHAT, run, step

from pdserve.ratio.decide import decide, decide_placed
from pdserve.ratio.records import record, replay
from pdserve.ratio.types import (
    BudgetLimit,
    Counts,
    PlacementLimit,
    Reason,
    Unknown,
    WindowFloor,
)
from pdserve.ratio.windows import TrafficWindow, lead_of, windows_at

OPEN = WindowFloor(("day",), 2, 2, 4, 0.0, 900.0, 9000.0)


def asked(current: Counts = TODAY, **over: Any) -> Any:
    return decision_input(current, **({"window": OPEN} | over))


def test_the_counts_of_a_window_are_reached_at_once_and_it_is_named() -> None:
    inp = asked(window=replace(OPEN, opens=5075.0), now=5000.0)
    got = decide(inp)
    assert (got.outcome, got.reason, got.to) == ("Applied", Reason.TIDAL_WINDOW, Counts(2, 2, 4))
    assert got.message.startswith("window day (opens in 75 s), at least 2 P/D groups, 2 prefill ")
    assert replay(record(inp, got))[2]


def test_no_instance_is_destroyed_to_reach_them() -> None:
    assert decide(asked(Counts(1, 3, 2))).to == Counts(2, 3, 4)


def test_counts_hold_also_without_metrics_for_a_clock_needs_none() -> None:
    got = decide(asked(sample=Unknown("away")))
    assert (got.outcome, got.reason) == ("Applied", Reason.TIDAL_WINDOW)
    there = decide(asked(Counts(2, 2, 4), sample=Unknown("away")))
    assert (there.outcome, there.reason) == ("Held", Reason.HOLD_NO_DATA)


@pytest.mark.invariant(3)
def test_a_window_never_leaves_the_bounds() -> None:
    got = decide(asked(window=replace(OPEN, groups=60, prefill=60, decode=60)))
    assert got.to == Counts(4, 6, 6)


@pytest.mark.parametrize(("mode", "outcome"), [("Advise", "Advised"), ("External", "Held")])
def test_modes_that_do_not_act_do_not(mode: str, outcome: str) -> None:
    got = decide(asked(mode=mode))
    assert (got.outcome, got.changes) == (outcome, False)


def test_the_budget_allows_part_of_a_window_and_then_says_so() -> None:
    devices = Counts(1, 2, 3).total("prefill") * 8 + 3 * 8
    inp = asked(budget=(BudgetLimit(NPU.resource, devices),), window=replace(OPEN, groups=0))
    got = decide(inp)
    assert (got.outcome, got.reason, got.to.groups) == ("Applied", Reason.TIDAL_WINDOW, 1)
    assert got.to.total("prefill") + got.to.total("decode") == 5
    there = decide(replace(inp, current=got.to, ready_prefill=got.to.prefill,
                           ready_decode=got.to.decode))  # fmt: skip
    assert (there.outcome, there.reason) == ("Blocked", Reason.BUDGET_EXHAUSTED)
    assert "window day" in there.message
    assert "the device budget" in there.message


def test_placement_is_asked_and_what_does_not_stand_is_not_applied() -> None:
    def most(counts: Counts) -> PlacementLimit | None:
        if counts.groups == 1:
            return None
        return PlacementLimit(counts.prefill, counts.decode, 1, "full")

    inp, got = decide_placed(asked(), most)
    assert got.to.groups == 1
    assert replay(record(inp, got))[2]


def test_a_surplus_stays_while_a_window_holds_and_goes_after_it() -> None:
    """Far less load than these counts hold, for long."""
    current = Counts(2, 2, 4)
    idle = sample(rate=0.5, at=5000.0)
    held = decide(asked(current, sample=idle, window=OPEN))
    after = decide(asked(current, sample=idle, window=None))
    assert held.to == current
    assert held.reason is Reason.STEADY
    assert ("schedule", "day") in held.inputs
    assert after.reason in (Reason.SURPLUS, Reason.CONFIRMING_SURPLUS)


def test_the_rate_of_a_window_is_sized_as_load_is() -> None:
    rate_only = WindowFloor(("peak",), 0, 0, 0, 12.0, 900.0, 9000.0)
    got = decide(asked(window=rate_only, memory=new()))
    assert (got.outcome, got.reason) == ("Applied", Reason.TIDAL_WINDOW)
    assert "window peak" in got.message
    measured = decide(asked(window=None, memory=new(), sample=sample(rate=12.0)))
    assert got.to == measured.to
    assert dict(got.inputs)["rateAhead"] == "12.000"


def test_a_rate_below_the_load_changes_nothing() -> None:
    with_window = decide(asked(window=replace(OPEN, groups=0, prefill=0, decode=0, rate=1.0)))
    without = decide(asked(window=None))
    assert (with_window.to, with_window.reason) == (without.to, without.reason)


# --- the whole loop -----------------------------------------------------------------------------

START = 1800.0
"""Half past midnight, 1 January 1970, UTC: when the plant's load steps up, and the window opens."""
WINDOWS = {
    "rate": TrafficWindow("peak", (), 1800, 5400, "UTC", rate=9.0),
    "counts": TrafficWindow("peak", (), 1800, 5400, "UTC", prefill=3, decode=7),
}


@pytest.mark.parametrize("kind", WINDOWS)
def test_a_step_at_the_start_of_a_window_is_served_and_without_one_missed(kind: str) -> None:
    rate = step(4.0, 9.0, START)
    alone = run(rate, CHAT, START + 240, Counts(1, 2, 4))
    ready = run(rate, CHAT, START + 240, Counts(1, 2, 4), windows=(WINDOWS[kind],))
    assert alone.plant.attainment_since(START) < SLO.attainment
    assert ready.plant.attainment_since(START) >= SLO.attainment
    first = ready.between(1500, START)[0]
    assert first.reason is Reason.TIDAL_WINDOW
    assert START - 90 <= first.time <= START - 60, "a cold start of 60 s with margin, no earlier"


def test_after_its_end_what_is_not_needed_goes_and_the_target_holds() -> None:
    """Traffic goes half an hour before the window closes."""
    done = run(
        lambda t: 9.0 if START <= t < 3600 else 3.0, CHAT, 7200, Counts(1, 1, 3),
        windows=(WINDOWS["rate"],),
    )  # fmt: skip
    held, after = done.at(5300), done.at(7200)
    assert held.total("decode") > after.total("decode")
    assert [d.reason for d in done.between(5400, 7200)] == [Reason.SURPLUS] * len(
        done.between(5400, 7200)
    )
    assert not done.between(3700, 5395), "nothing is given back while it holds"
    assert done.plant.attainment_since(START) >= SLO.attainment
    assert lead_of(done.inputs[0].settings) == 85.0
    assert windows_at((WINDOWS["rate"],), 5400.0, 85.0).floor is None


def test_a_window_does_not_count_as_load_that_came_back() -> None:
    """Growth for a window soon after a reduction leaves the loop's patience as it is."""
    rate_only = WindowFloor(("peak",), 0, 0, 0, 12.0, 900.0, 9000.0)
    memory = replace(new(), shrunk_at=asked().now - 10.0)
    got = decide(asked(window=rate_only, memory=memory))
    assert got.reason is Reason.TIDAL_WINDOW
    assert got.memory.patience == memory.patience
