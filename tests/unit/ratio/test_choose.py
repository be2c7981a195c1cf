"""Integers within limits, in a documented total order."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.ratio_values import PROFILE, SLO

from pdserve.ratio.choose import (
    CountLimits,
    Predictor,
    best_effort,
    churn,
    grow,
    growth_order,
)
from pdserve.ratio.model import build
from pdserve.ratio.types import (
    Bounds,
    BudgetLimit,
    Counts,
    Demand,
    PlacementLimit,
    Range,
    RoleDevices,
)
from pdserve.terms import Role

BOUNDS = Bounds(Range(1, 3), Range(1, 4), Range(1, 4))
LIMITS = CountLimits(BOUNDS, RoleDevices("npu", 8), RoleDevices("npu", 8))


def predictor(rate: float = 6.0, prompt: float = 1500.0, output: float = 200.0) -> Predictor:
    return Predictor(build(PROFILE, Demand(rate, prompt, prompt, prompt**2 * 1.2, output), SLO))


def search(
    current: Counts, limits: CountLimits, predict: Predictor, allowed: float = 0.05
) -> Counts | None:
    most = limits.bounds.groups.max * 4

    def needs(role: Role) -> int:
        return predict.least(role, allowed, most)

    return grow(current, limits, lambda counts: predict.holds(counts, allowed), needs)


@pytest.mark.parametrize(
    ("before", "after", "want"),
    [
        (Counts(1, 1, 1), Counts(1, 1, 1), (0, 0)),
        (Counts(1, 2, 3), Counts(1, 3, 2), (1, 1)),
        (Counts(2, 2, 2), Counts(1, 4, 4), (4, 4)),
        (Counts(1, 1, 2), Counts(3, 1, 2), (0, 6)),
        (Counts(2, 1, 1), Counts(2, 2, 1), (0, 2)),
    ],
)
def test_churn_counts_real_instances(before: Counts, after: Counts, want: tuple[int, int]) -> None:
    assert churn(before, after) == want


def test_a_role_moves_before_anything_grows() -> None:
    order = growth_order(Counts(1, 2, 3), LIMITS)
    assert order(Counts(1, 3, 2)) < order(Counts(1, 3, 3))


def test_growth_destroys_nothing_when_it_need_not() -> None:
    order = growth_order(Counts(1, 2, 2), LIMITS)
    assert order(Counts(2, 2, 2)) < order(Counts(1, 4, 4)), "same devices, ratio kept, as groups"
    assert order(Counts(1, 3, 2)) < order(Counts(3, 1, 1)), "same devices, fewer torn down"


def test_the_least_instances_that_hold_the_load() -> None:
    predict = predictor(rate=6.0)
    found = search(Counts(1, 1, 1), LIMITS, predict)
    assert found is not None
    assert predict.holds(found, 0.05)
    for counts in _all(BOUNDS):
        if predict.holds(counts, 0.05):
            assert LIMITS.devices(counts) >= LIMITS.devices(found)


def test_nothing_that_holds_is_none() -> None:
    assert search(Counts(1, 1, 1), LIMITS, predictor(rate=500.0)) is None


def test_budget_and_placement_forbid() -> None:
    predict = predictor(rate=6.0)
    free = search(Counts(1, 1, 1), LIMITS, predict)
    assert free is not None
    poor = replace(LIMITS, budget=(BudgetLimit("npu", LIMITS.devices(free) - 1),))
    assert search(Counts(1, 1, 1), poor, predict) is None
    elsewhere = replace(LIMITS, placement=(PlacementLimit(free.prefill, free.decode, 0),))
    other = search(Counts(1, 1, 1), elsewhere, predict)
    assert other is None or other.prefill < free.prefill or other.decode < free.decode


def test_budget_is_per_resource() -> None:
    mixed = CountLimits(
        BOUNDS, RoleDevices("npu", 4), RoleDevices("gpu", 2), (BudgetLimit("gpu", 6),)
    )
    assert mixed.within_budget(Counts(1, 4, 3))
    assert not mixed.within_budget(Counts(2, 1, 2))
    assert mixed.devices(Counts(2, 1, 2)) == 16


def test_a_larger_shape_fits_no_more_often_than_a_smaller_one() -> None:
    limits = replace(LIMITS, placement=(PlacementLimit(2, 1, 1),))
    assert limits.placeable(Counts(1, 2, 1))
    assert limits.placeable(Counts(3, 1, 4))
    assert not limits.placeable(Counts(2, 2, 1))
    assert not limits.placeable(Counts(2, 3, 2))


def test_best_effort_balances_a_binding_budget() -> None:
    limits = replace(LIMITS, budget=(BudgetLimit("npu", 5 * 8),))
    long_prompts = best_effort(Counts(1, 1, 1), limits, predictor(20.0, 3000.0, 40.0))
    long_answers = best_effort(Counts(1, 1, 1), limits, predictor(20.0, 300.0, 400.0))
    assert long_prompts.total("prefill") > long_prompts.total("decode")
    assert long_answers.total("decode") > long_answers.total("prefill")
    for counts in (long_prompts, long_answers):
        assert limits.within_budget(counts)


def test_best_effort_is_the_best() -> None:
    predict = predictor(30.0)
    found = best_effort(Counts(1, 1, 1), LIMITS, predict)
    best = max(predict.attainment(counts) for counts in _all(BOUNDS))
    assert predict.attainment(found) >= best - 0.001


def test_best_effort_destroys_nothing_that_serves() -> None:
    """Three running groups were given up for a predicted gain."""
    poor = replace(LIMITS, budget=(BudgetLimit("npu", 6 * 8),))
    found = best_effort(Counts(1, 4, 1), poor, predictor(30.0, 500.0, 400.0))
    assert found == Counts(1, 4, 2)


@pytest.mark.invariant(3)
@settings(max_examples=60)
@given(
    rate=st.floats(0.0, 80.0),
    prompt=st.floats(1.0, 9000.0),
    output=st.floats(1.0, 900.0),
    groups=st.tuples(st.integers(1, 3), st.integers(0, 3)),
    prefill=st.tuples(st.integers(1, 4), st.integers(0, 4)),
    decode=st.tuples(st.integers(1, 4), st.integers(0, 4)),
    budget=st.integers(2, 60),
)
def test_every_answer_is_inside_every_limit(
    rate: float,
    prompt: float,
    output: float,
    groups: tuple[int, int],
    prefill: tuple[int, int],
    decode: tuple[int, int],
    budget: int,
) -> None:
    bounds = Bounds(*(Range(low, low + more) for low, more in (groups, prefill, decode)))
    limits = replace(LIMITS, bounds=bounds, budget=(BudgetLimit("npu", budget * 8),))
    current = Counts(bounds.groups.min, bounds.prefill.min, bounds.decode.min)
    predict = predictor(rate, prompt, output)
    for found in (search(current, limits, predict), best_effort(current, limits, predict)):
        if found is not None and found != current:
            assert bounds.clamp(found) == found
            assert limits.within_budget(found)


def _all(bounds: Bounds) -> list[Counts]:
    spans = (bounds.groups, bounds.prefill, bounds.decode)
    return [Counts(*c) for c in itertools.product(*(range(s.min, s.max + 1) for s in spans))]
