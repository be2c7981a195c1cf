"""Giving devices back: a surplus that lasts, and a scenario without traffic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.support.ratio_values import (
    decision_input,
    idle_since,
    sample,
    window,
)

from pdserve.ratio.decide import decide
from pdserve.ratio.types import (
    Bounds,
    Counts,
    DecisionInput,
    ExpectedTraffic,
    LoopMemory,
    Need,
    Range,
    Reason,
)


def surplus(now: float = 5000.0, lasted: float = 400.0, **over: Any) -> DecisionInput:
    """Far more instances than the load needs, for so many seconds."""
    current = Counts(1, 4, 6)
    memory = LoopMemory(
        settled_at=0.0, settled_counts=current, pressure_at=now, needs=idle_since(now, lasted)
    )
    return decision_input(current, now=now, **{"memory": memory, **over})


def test_a_surplus_is_confirmed_before_all_of_it_goes_at_once() -> None:
    first = decide(surplus(lasted=20.0))
    assert (first.outcome, first.reason) == ("Held", Reason.CONFIRMING_SURPLUS)
    later = decide(surplus())
    assert (later.outcome, later.reason) == ("Applied", Reason.SURPLUS)
    assert later.to.prefill <= 2
    assert later.to.decode <= 3


def test_nothing_goes_below_the_largest_need_of_the_last_cycle() -> None:
    inp = surplus()
    busy = replace(inp.memory, needs=(Need(4600.0, 1, 1), Need(4900.0, 3, 5), Need(4980.0, 1, 1)))
    assert decide(replace(inp, memory=busy)).to == Counts(1, 3, 5)


def test_a_role_that_is_just_enough_does_not_keep_the_other_large() -> None:
    """4P12D for 75 minutes, where 8 decodes were enough."""
    wide = Bounds(Range(1, 1), Range(1, 20), Range(1, 20))
    current = Counts(1, 1, 12)
    memory = LoopMemory(
        settled_at=0.0, settled_counts=current, pressure_at=5000.0, needs=idle_since(5000.0)
    )
    got = decide(decision_input(current, sample=sample(rate=6.0), memory=memory, bounds=wide))
    assert got.reason is Reason.SURPLUS
    assert got.to.prefill == 1
    assert got.to.decode <= 4


def test_no_step_down_soon_after_a_change() -> None:
    got = decide(surplus(memory=replace(surplus().memory, settled_at=4950.0)))
    assert got.outcome == "Held"


def test_no_step_down_while_the_target_is_missed() -> None:
    got = decide(surplus(sample=sample(rate=2.0, attainment=0.94)))
    assert got.to.total("prefill") + got.to.total("decode") >= 10


def test_no_step_down_below_the_bounds() -> None:
    low = Bounds(Range(1, 4), Range(4, 6), Range(6, 6))
    got = decide(surplus(bounds=low))
    assert (got.outcome, got.reason) == ("Held", Reason.STEADY)


def test_a_surplus_with_proven_pressure_is_kept() -> None:
    inp = decision_input(Counts(1, 2, 4), sample=sample(rate=5.0))
    memory = replace(inp.memory, needs=idle_since(5000.0), pressure_at=5000.0)
    easy = decide(replace(inp, memory=memory))
    pressed = decide(
        replace(inp, memory=replace(memory, pressure_prefill=2.0, pressure_decode=2.0))
    )
    assert easy.reason is Reason.SURPLUS
    assert (
        pressed.to.total("prefill") + pressed.to.total("decode") > easy.to.prefill + easy.to.decode
    )


def test_an_idle_scenario_with_announced_traffic_shrinks_to_its_bounds() -> None:
    idle = tuple(window(s, 0.0) for s in (60.0, 180.0, 600.0))
    got = decide(surplus(sample=sample(idle), expected=ExpectedTraffic(1000.0, 100.0, 4.0)))
    assert (got.outcome, got.reason) == ("Applied", Reason.SURPLUS)


# --- no traffic and no profile -----------------------------------------------------------------


def idle(
    now: float, memory: LoopMemory, offered: tuple[float, ...] = (0, 0, 0), **over: Any
) -> DecisionInput:
    windows = tuple(window(s, rate) for s, rate in zip((60.0, 180.0, 600.0), offered, strict=True))
    inp = decision_input(Counts(2, 4, 6), now=now, sample=sample(windows), **over)
    return replace(inp, profile=None, memory=memory)


def test_nothing_offered_through_the_dwell_shrinks_to_the_minimum_without_a_profile() -> None:
    """K7.11."""
    memory = LoopMemory(settled_at=0.0, settled_counts=Counts(2, 4, 6))
    outcomes = []
    for minute in range(6):
        got = decide(
            idle(5000.0 + 60 * minute, memory, expected=ExpectedTraffic(200.0, 60.0, 40.0))
        )
        memory = got.memory
        outcomes.append((got.outcome, got.to))
    assert outcomes[:5] == [("Held", Counts(2, 4, 6))] * 5
    assert outcomes[5] == ("Applied", Counts(1, 1, 1))
    assert got.reason is Reason.SURPLUS
    assert "nothing was offered" in got.message


def test_one_request_in_the_dwell_keeps_the_counts_that_no_profile_judges() -> None:
    memory = LoopMemory(settled_at=0.0, settled_counts=Counts(2, 4, 6), surplus_since=0.0)
    for offered in ((0.1, 0.1, 0.1), (0.0, 0.1, 0.1)):
        got = decide(idle(5000.0, memory, offered))
        assert got.outcome == "Held"
        assert got.memory.surplus_since is None
    # Long past traffic says nothing about now.
    assert decide(idle(5000.0, memory, (0.0, 0.0, 0.1))).to == Counts(1, 1, 1)


def test_an_idle_scenario_at_its_minimum_stays() -> None:
    inp = idle(5000.0, LoopMemory(surplus_since=0.0))
    least = replace(inp, current=Counts(1, 1, 1), ready_prefill=1, ready_decode=1)
    got = decide(least)
    assert (got.outcome, got.reason, got.to) == ("Held", Reason.STEADY, Counts(1, 1, 1))
