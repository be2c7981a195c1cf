"""Which of several counts is taken: orders of growth and of giving back, and how far is looked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.ratio_values import PROFILE, SLO, decision_input, idle_since, sample, window
from tests.unit.ratio.test_surplus import idle, surplus

from pdserve.ratio.choose import CountLimits, Predictor, best_effort, grow, growth_order
from pdserve.ratio.decide import decide
from pdserve.ratio.model import build
from pdserve.ratio.types import (
    Bounds,
    BudgetLimit,
    Counts,
    Demand,
    LoopMemory,
    PlacementLimit,
    Range,
    Reason,
    RoleDevices,
    Unknown,
)
from pdserve.terms import Role

WIDE = Bounds(Range(1, 2), Range(1, 9), Range(1, 9))
SAME = CountLimits(WIDE, RoleDevices("npu", 8), RoleDevices("npu", 8))
MIXED = CountLimits(WIDE, RoleDevices("npu", 8), RoleDevices("npu", 4))


def predictor(rate: float, prompt: float = 1500.0, output: float = 200.0) -> Predictor:
    return Predictor(build(PROFILE, Demand(rate, prompt, prompt, prompt**2, output), SLO))


# --- growth --------------------------------------------------------------------------------------

BETTER: list[tuple[str, CountLimits, Counts, Counts, Counts]] = [
    ("fewer devices more", MIXED, Counts(1, 2, 2), Counts(1, 2, 3), Counts(1, 3, 2)),
    ("what is below today's is no gain", SAME, Counts(1, 3, 3), Counts(1, 2, 3), Counts(1, 2, 2)),
    ("fewer destroyed", SAME, Counts(1, 2, 2), Counts(1, 3, 2), Counts(3, 1, 1)),
    ("fewer created", MIXED, Counts(1, 2, 2), Counts(1, 3, 2), Counts(1, 2, 4)),
    ("the ratio nearer to today's", SAME, Counts(1, 2, 2), Counts(1, 2, 3), Counts(1, 3, 2)),
    ("more groups", SAME, Counts(1, 1, 1), Counts(2, 1, 1), Counts(1, 2, 2)),
    ("fewer prefills", SAME, Counts(1, 3, 4), Counts(1, 2, 4), Counts(1, 4, 4)),
]


@pytest.mark.parametrize(
    ("limits", "current", "first", "second"), [r[1:] for r in BETTER], ids=[r[0] for r in BETTER]
)
def test_growth_prefers(
    limits: CountLimits, current: Counts, first: Counts, second: Counts
) -> None:
    order = growth_order(current, limits)
    assert order(first) < order(second)


def looked_at(current: Counts, limits: CountLimits, **needs: int) -> set[Counts]:
    """The counts that growth asks about when none is accepted."""
    seen: set[Counts] = set()

    def accepts(counts: Counts) -> bool:
        seen.add(counts)
        return False

    assert grow(current, limits, accepts, lambda role: needs[role]) is None
    return seen


def test_growth_looks_at_three_more_than_each_group_needs() -> None:
    seen = looked_at(Counts(1, 1, 1), SAME, prefill=3, decode=6)
    of_one = {(c.prefill, c.decode) for c in seen if c.groups == 1}
    of_two = {(c.prefill, c.decode) for c in seen if c.groups == 2}
    assert of_one == {(p, d) for p in range(3, 7) for d in range(6, 10)}
    assert of_two == {(p, d) for p in range(2, 6) for d in range(3, 7)}


def test_growth_looks_at_one_more_than_today_at_least_and_stays_inside_the_limits() -> None:
    seen = looked_at(
        Counts(1, 6, 1),
        replace(SAME, bounds=Bounds(Range(0, 1), Range(2, 9), Range(1, 1))),
        prefill=1,
        decode=1,
    )
    assert seen == {Counts(1, p, 1) for p in range(2, 8)}
    poor = replace(SAME, budget=(BudgetLimit("npu", 24),))
    assert looked_at(Counts(1, 1, 1), poor, prefill=1, decode=1) == {
        Counts(1, 1, 1), Counts(1, 1, 2), Counts(1, 2, 1),
    }  # fmt: skip
    full = replace(SAME, placement=(PlacementLimit(2, 1, 0), PlacementLimit(1, 1, 1)))
    assert looked_at(Counts(1, 1, 1), full, prefill=1, decode=1) == {
        Counts(1, 1, d) for d in range(1, 5)
    }


def test_predictions_are_kept_apart_by_role_number_and_stress() -> None:
    shared, rows = predictor(6.0), []
    roles: tuple[Role, Role] = ("prefill", "decode")
    for role in roles:
        for instances in (1, 2):
            rows += [(role, instances, stress) for stress in (1.0, 1.3)]
    for role, instances, stress in [*rows, *rows]:
        alone = predictor(6.0)
        assert shared.misses(role, instances, stress) == alone.misses(role, instances, stress)
        assert shared.late(role, instances) == alone.late(role, instances)


def test_a_request_is_in_time_when_both_roles_are() -> None:
    predict = predictor(9.5)
    prefill, decode = predict.late("prefill", 2), predict.late("decode", 6)
    assert prefill > 0.0 and decode > 0.0
    assert predict.attainment(Counts(2, 1, 3)) == pytest.approx((1 - prefill) * (1 - decode))
    both = predict.misses("prefill", 2) + predict.misses("decode", 6)
    assert predict.holds(Counts(2, 1, 3), both)
    assert not predict.holds(Counts(2, 1, 3), both * 0.999)


@pytest.mark.parametrize(("most", "want"), [(9, 3), (3, 3), (2, 2), (1, 1)])
def test_the_least_of_a_role_is_the_most_there_may_be_where_none_is_enough(
    most: int, want: int
) -> None:
    predict = predictor(16.0)
    allowed = predict.misses("prefill", 3)
    assert predict.least("prefill", allowed, most) == want


def test_best_effort_takes_counts_inside_the_limits_that_promise_most() -> None:
    """To a tenth of a percent, then capacity; of equal ones the first in the order of growth."""
    predict = predictor(2.0)
    for today in (Counts(1, 2, 2), Counts(1, 7, 3), Counts(1, 3, 7)):
        assert best_effort(today, SAME, predict) == today, "none is better"
    busy = predictor(30.0)
    poor = replace(SAME, budget=(BudgetLimit("npu", 56),))
    order = growth_order(Counts(1, 1, 1), poor)
    all_of_them = [
        Counts(g, p, d) for g in (1, 2) for p in range(1, 10) for d in range(1, 10)
    ]  # fmt: skip
    allowed = [c for c in all_of_them if poor.within_budget(c)]
    want = min(
        allowed,
        key=lambda c: (-round(busy.attainment(c), 3), -round(busy.served(c), 3), order(c)),
    )
    assert best_effort(Counts(1, 1, 1), poor, busy) == want
    taken = replace(poor, placement=(PlacementLimit(want.prefill, want.decode, 0),))
    assert best_effort(Counts(1, 1, 1), taken, busy) != want


# --- giving back ---------------------------------------------------------------------------------


def given_back(current: Counts, rate: float, **over: Any) -> Counts:
    seen = tuple(window(s, rate) for s in (60.0, 180.0, 600.0))
    memory = LoopMemory(settled_at=0.0, settled_counts=current, needs=idle_since(5000.0))
    return decide(decision_input(current, memory=memory, sample=sample(seen), **over)).to


NPUS, FEWER = RoleDevices("npu", 8), RoleDevices("npu", 4)
LEFT: list[tuple[str, Counts, float, dict[str, Any], Counts]] = [
    ("nearly all, without load", Counts(3, 4, 6), 0.05, {}, Counts(1, 1, 1)),
    ("as many groups as the load needs", Counts(2, 3, 5), 2.0, {}, Counts(1, 1, 1)),
    ("what costs most first", Counts(1, 4, 6), 4.0,
     {"prefill_devices": FEWER, "decode_devices": NPUS}, Counts(1, 1, 2)),
    ("nothing, at the bounds", Counts(1, 2, 3), 0.05,
     {"bounds": Bounds(Range(1, 1), Range(2, 3), Range(3, 3))}, Counts(1, 2, 3)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("current", "rate", "over", "want"), [r[1:] for r in LEFT], ids=[r[0] for r in LEFT]
)
def test_what_is_left(current: Counts, rate: float, over: dict[str, Any], want: Counts) -> None:
    assert given_back(current, rate, **over) == want


def test_what_is_given_back_is_reported_with_its_devices() -> None:
    got = decide(surplus())
    freed = 8 * (10 - got.to.prefill - got.to.decode)
    assert f"1x(4P6D) -> {got.to} frees {freed} devices" in got.message


@pytest.mark.parametrize(
    ("attainment", "settled", "rates", "gives"),
    [
        (0.95, 0.0, (100.0, 100.0, 100.0), True),
        (0.949, 0.0, (100.0, 100.0, 100.0), False),
        (1.0, 4900.0, (2.0, 2.0, 2.0), True),
        (1.0, 4990.0, (2.0, 2.0, 2.0), False),
    ],
    ids=["target met", "target missed", "too few requests to tell", "counts just complete"],
)
def test_only_a_scenario_that_does_well_gives_back(
    attainment: float, settled: float, rates: tuple[float, ...], gives: bool
) -> None:
    """100 requests/s of one token: decodes have next to nothing to do."""
    current = Counts(1, 1, 6)
    seen = tuple(
        window(s, r, attainment, prompt=10.0, output=1.0)
        for s, r in zip((60.0, 180.0, 600.0), rates, strict=True)
    )
    memory = LoopMemory(settled_at=settled, settled_counts=current, needs=idle_since(5000.0))
    expected = decision_input(current, memory=memory, sample=sample(seen, at=5000.0), mode="Auto")
    assert (decide(expected).reason is Reason.SURPLUS) is gives


NONE_OFFERED: list[tuple[str, list[tuple[float, float | Unknown]], bool]] = [
    ("none in any window", [(60, 0.0), (180, 0.0), (600, 0.0)], True),
    ("one is not known", [(60, 0.0), (180, Unknown("x")), (600, 0.0)], False),
    ("some before the dwell", [(60, 0.0), (180, 0.0), (600, 5.0)], True),
    ("some in the dwell", [(60, 0.0), (180, 0.0), (300, 5.0)], False),
]


@pytest.mark.parametrize(
    ("offered", "gives"), [r[1:] for r in NONE_OFFERED], ids=[r[0] for r in NONE_OFFERED]
)
def test_without_a_profile_all_is_given_back_where_nothing_was_offered_through_the_dwell(
    offered: list[tuple[float, float | Unknown]], gives: bool
) -> None:
    memory = LoopMemory(settled_at=0.0, settled_counts=Counts(2, 4, 6), surplus_since=0.0)
    seen = tuple(replace(window(s, 0.0), offered=n, met=n) for s, n in offered)
    got = decide(replace(idle(5000.0, memory), sample=sample(seen, at=5000.0)))
    assert (got.to == Counts(1, 1, 1)) is gives
    if gives:
        assert "nothing was offered for 180 s; 2x(4P6D) -> 1x(1P1D)" in got.message
        assert f"frees {8 * 18} devices" in got.message
