"""What one round remembers for the next, and what holds a decision back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.ratio_values import PROFILE, TODAY, decision_input, sample, window
from tests.unit.ratio.test_bottleneck import NOTHING
from tests.unit.ratio.test_decide import failing
from tests.unit.ratio.test_surplus import surplus

from pdserve.ratio.bottleneck import read_signals
from pdserve.ratio.decide import MAX_SHAPES, decide, decide_placed
from pdserve.ratio.memory import (
    grown,
    observe_readiness,
    remember_health,
    remember_need,
    shrunk,
)
from pdserve.ratio.types import (
    Bounds,
    Counts,
    DecisionInput,
    LoopMemory,
    LoopSettings,
    Need,
    PastChange,
    PlacementLimit,
    Range,
    Reason,
)

NOW = 5000.0
SETTLED = LoopMemory(settled_at=4000.0, settled_counts=TODAY)

# --- since when the counts are in effect ----------------------------------------------------------

READY: list[tuple[str, tuple[int, int], LoopMemory, tuple[Any, ...]]] = [
    ("all ready, as before", (1, 3), SETTLED, (None, 4000.0, TODAY)),
    ("all ready for the first time", (1, 3), LoopMemory(unready_since=4900.0), (None, NOW, TODAY)),
    ("all ready, of other counts", (1, 3), replace(SETTLED, settled_counts=Counts(1, 1, 2)),
     (None, NOW, TODAY)),
    ("a prefill is not", (0, 3), SETTLED, (NOW, None, None)),
    ("a decode is not", (1, 2), SETTLED, (NOW, None, None)),
    ("one prefill too many", (2, 3), SETTLED, (NOW, None, None)),
    ("a decode is not, for a while", (1, 2), LoopMemory(unready_since=4900.0),
     (4900.0, None, None)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("ready", "memory", "want"), [r[1:] for r in READY], ids=[r[0] for r in READY]
)
def test_counts_are_in_effect_since_all_they_ask_for_was_ready(
    ready: tuple[int, int], memory: LoopMemory, want: tuple[Any, ...]
) -> None:
    prefill, decode = ready
    after = observe_readiness(
        decision_input(memory=memory, ready_prefill=prefill, ready_decode=decode)
    )
    assert (after.unready_since, after.settled_at, after.settled_counts) == want


# --- what healthy times look like -----------------------------------------------------------------

SEEN = replace(NOTHING, prefill_compute=3.0, decode_compute=1.0)
HEALTH: list[tuple[str, LoopMemory, dict[str, float | None], tuple[float | None, float | None]]] = [
    ("the first round is taken as it is", LoopMemory(), {}, (0.75, 4.0)),
    ("so is one after half of it was lost", LoopMemory(base_share=0.5), {}, (0.75, 4.0)),
    ("whichever half", LoopMemory(base_compute=2.0), {}, (0.75, 4.0)),
    ("later ones count a fifth", LoopMemory(base_share=0.5, base_compute=2.0), {}, (0.55, 2.4)),
    ("a round without a share changes nothing", LoopMemory(base_share=0.5, base_compute=2.0),
     {"decode_compute": None}, (0.5, 2.0)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("memory", "over", "want"), [r[1:] for r in HEALTH], ids=[r[0] for r in HEALTH]
)
def test_healthy_times_are_remembered_smoothly(
    memory: LoopMemory,
    over: dict[str, float | None],
    want: tuple[float | None, float | None],
) -> None:
    after = remember_health(memory, replace(SEEN, **over))
    assert (after.base_share, after.base_compute) == pytest.approx(want)


def test_only_rounds_that_meet_their_target_by_measurement_are_healthy() -> None:
    healthy = decide(decision_input())
    share = read_signals(sample(), PROFILE).share
    assert healthy.memory.base_share == pytest.approx(share)
    assert decide(failing()).memory.base_share is None
    fresh = replace(SETTLED, settled_at=4990.0)
    assert decide(decision_input(memory=fresh)).memory.base_share is None, "nothing measured yet"


# --- what holds a decision back -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("since", "held"), [(4400.0, True), (4399.0, False), (NOW, True)], ids=["10 min", "more", "now"]
)
def test_instances_on_their_way_hold_everything_for_so_long(since: float, held: bool) -> None:
    got = decide(failing(ready_decode=2, memory=LoopMemory(unready_since=since)))
    assert (got.reason is Reason.IN_FLIGHT) is held
    if held:
        assert f"prefill 1/1, decode 2/3, for {NOW - since:.0f} s" in got.message


def changes(*ago: float) -> tuple[PastChange, ...]:
    return tuple(PastChange(NOW - seconds) for seconds in ago)


@pytest.mark.parametrize(
    ("ago", "outcome"),
    [((60,), "Applied"), ((59,), "Held"), ((900, 30, 500), "Held"), ((), "Applied")],
    ids=["a dwell ago", "less", "the last of several counts", "never"],
)
def test_growth_waits_for_its_dwell_after_the_last_change(
    ago: tuple[float, ...], outcome: str
) -> None:
    got = decide(failing(changes=changes(*ago)))
    assert got.outcome == outcome
    assert (got.reason is Reason.DWELL) is (outcome == "Held")


def test_what_cannot_be_is_said_at_once() -> None:
    """No dwell before a message that nothing changes."""
    full = Bounds(Range(1, 1), Range(1, 1), Range(1, 3))
    assert decide(failing(bounds=full, changes=changes(1))).outcome == "Blocked"


@pytest.mark.parametrize(
    ("lasted", "patience", "wait"),
    [(240.0, 1.0, 0), (239.0, 1.0, 1), (240.0, 2.0, 240), (480.0, 2.0, 0)],
    ids=["it lasted", "almost", "after one that was regretted", "twice as long"],
)
def test_a_surplus_must_last(lasted: float, patience: float, wait: int) -> None:
    inp = surplus(lasted=lasted)
    got = decide(replace(inp, memory=replace(inp.memory, patience=patience)))
    if wait:
        assert got.reason is Reason.CONFIRMING_SURPLUS
        assert f"confirming for another {max(wait, 5)} s" in got.message
    else:
        assert (got.outcome, got.reason) == ("Applied", Reason.SURPLUS)
        assert got.memory.shrunk_at == NOW


@pytest.mark.parametrize(
    ("cold_start", "seconds"), [(5.0, 120.0), (60.0, 240.0), (70.0, 280.0), (600.0, 300.0)]
)
def test_the_slower_a_start_the_longer_a_surplus_is_kept(cold_start: float, seconds: float) -> None:
    assert LoopSettings(cold_start=cold_start).cycle == seconds
    inp = surplus(lasted=seconds - 1.0)
    slow = replace(inp, settings=LoopSettings(cold_start=cold_start))
    assert decide(slow).reason is Reason.CONFIRMING_SURPLUS
    lasted = replace(slow, memory=surplus(lasted=seconds).memory)
    assert decide(lasted).reason is Reason.SURPLUS


def test_growth_soon_after_a_reduction_doubles_patience_and_calm_halves_it() -> None:
    settings = LoopSettings()
    memory = shrunk(LoopMemory(), 0.0, settings)
    again = grown(memory, 600.0, settings)
    assert (again.patience, again.shrunk_at) == (2.0, None)
    assert grown(memory, 601.0, settings).patience == 1.0
    assert grown(LoopMemory(), 0.0, settings).patience == 1.0
    calm = shrunk(replace(again, shrunk_at=0.0), 1201.0, settings)
    assert calm.patience == 1.0
    assert grown(replace(memory, patience=8.0), 10.0, settings).patience == 8.0


def test_needs_are_kept_for_a_cycle_a_point_a_minute_and_no_gap_between() -> None:
    settings, memory = LoopSettings(), LoopMemory()
    for k in range(200):
        memory = remember_need(memory, Need(5.0 * k, 1 + k % 3, 2), settings)
    times = [need.time for need in memory.needs]
    assert 5 <= len(times) <= 7
    assert times[0] <= 5.0 * 199 - settings.cycle
    assert {(need.prefill, need.decode) for need in memory.needs[:-1]} == {(3, 2)}
    after_outage = remember_need(memory, Need(5.0 * 199 + 400.0, 1, 1), settings)
    assert len(after_outage.needs) == 1


ENDS: list[tuple[str, DecisionInput]] = [
    ("growth by the model", decision_input(sample=sample(rate=9.0))),
    ("growth by evidence", failing()),
    ("growth that waits", failing(changes=changes(1))),
    ("no surplus any more", decision_input(Counts(1, 1, 2), sample=sample(rate=3.0))),
]


@pytest.mark.parametrize("inp", [r[1] for r in ENDS], ids=[r[0] for r in ENDS])
def test_a_surplus_that_something_interrupts_is_confirmed_anew(inp: DecisionInput) -> None:
    memory = replace(inp.memory, surplus_since=4000.0)
    got = decide(replace(inp, memory=memory))
    assert got.memory.surplus_since is None


# --- asking placement -----------------------------------------------------------------------------


def asked_about(inp: DecisionInput) -> list[Counts]:
    asked: list[Counts] = []
    decide_placed(inp, asked.append)  # type: ignore[arg-type]
    return asked


def test_placement_is_asked_about_growth_that_may_happen_only() -> None:
    grown = decide(failing()).to
    assert asked_about(failing()) == [grown]
    assert asked_about(failing(mode="Advise")) == [grown], "advice is worth what can be placed"
    assert asked_about(failing(changes=changes(1))) == [], "held"
    assert asked_about(surplus()) == [], "nothing gets more"
    assert asked_about(failing(bounds=Bounds(Range(1, 1), Range(1, 1), Range(1, 3)))) == []


@pytest.mark.parametrize(("most", "outcome"), [(2, "Applied"), (1, "Blocked")])
def test_a_shape_stands_that_fits_as_often_as_is_proposed(most: int, outcome: str) -> None:
    only_groups = Bounds(Range(1, 4), Range(1, 1), Range(3, 3))
    inp = failing(bounds=only_groups)
    assert decide(inp).to == Counts(2, 1, 3)
    _, got = decide_placed(inp, lambda counts: PlacementLimit(1, 3, most))
    assert got.outcome == outcome


@pytest.mark.parametrize("current", [Counts(1, 1, 3), Counts(2, 1, 1)], ids=str)
def test_a_shape_that_placement_was_not_asked_about_is_never_taken(current: Counts) -> None:
    """It is asked so often, here with answers that rule nothing out, and then nothing grows."""
    asked: list[Counts] = []

    def odd(counts: Counts) -> PlacementLimit:
        asked.append(counts)
        return PlacementLimit(99, 99, 0)

    wide = Bounds(Range(1, 16), Range(1, 16), Range(1, 16))
    inp, got = decide_placed(failing(current, bounds=wide), odd)
    assert len(asked) == MAX_SHAPES == 16
    assert (got.outcome, got.reason, got.to) == ("Blocked", Reason.PLACEMENT_INFEASIBLE, current)
    assert "more shapes were not asked about" in got.message
    assert [(p.prefill, p.decode, p.groups) for p in inp.placement[16:]] == [
        (1, 1, current.groups), (current.prefill + 1, 1, 0), (1, current.decode + 1, 0),
    ]  # fmt: skip
    assert decide(inp) == got


@pytest.mark.parametrize(
    ("over", "to"),
    [({"fixed": Counts(2, 1, 1)}, Counts(2, 1, 1)), ({"fixed": None}, TODAY),
     ({"fixed": None, "current": Counts(9, 1, 3)}, Counts(4, 1, 3))],
    ids=["stated", "not stated: as they are", "not stated: inside the bounds"],
)  # fmt: skip
def test_fixed_counts_are_those_stated_or_todays(over: dict[str, Any], to: Counts) -> None:
    inp = decision_input(mode="Fixed", sample=sample((window(),)))
    got = decide(replace(inp, **over))
    assert (got.to, got.reason) == (to, Reason.FIXED_COUNTS)
    assert got.outcome == ("Held" if to == got.before else "Applied")
