"""Growth at its limits: which one binds, what is still taken, and what one more of a role costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.ratio_values import (
    NPU,
    PROFILE,
    SLO,
    TODAY,
    decision_input,
    new,
    sample,
    window,
)
from tests.unit.ratio.test_decide import failing

from pdserve.ratio.decide import decide
from pdserve.ratio.memory import MAX_PRESSURE
from pdserve.ratio.presets import dilated
from pdserve.ratio.types import (
    Bounds,
    BudgetLimit,
    Counts,
    DecisionInput,
    LoopMemory,
    PlacementLimit,
    Range,
    Reason,
    RoleDevices,
)
from pdserve.terms import Role

SPANS = (60.0, 180.0, 600.0)
ONE = Counts(1, 1, 1)
POOR = (BudgetLimit(NPU.resource, 16),)
"""As many devices as one prefill and one decode take."""
NOWHERE = (PlacementLimit(1, 1, 1), PlacementLimit(2, 1, 0), PlacementLimit(1, 2, 0))
"""Nothing bigger than one prefill and one decode can stand."""


def bounds(groups: int, prefill: int, decode: int) -> Bounds:
    return Bounds(Range(1, groups), Range(1, prefill), Range(1, decode))


def short_of(role: Role, current: Counts = ONE, **over: Any) -> DecisionInput:
    """Requests miss their target for want of a role."""
    inp = failing(current, **over)
    if role == "prefill":
        return inp
    return replace(inp, sample=sample(at=5000.0, attainment=0.6, decode_overload=200.0))


# --- which limit binds ---------------------------------------------------------------------------

STEPS: list[tuple[Role, Bounds]] = [
    ("prefill", bounds(2, 1, 1)), ("prefill", bounds(1, 2, 1)),
    ("decode", bounds(2, 1, 1)), ("decode", bounds(1, 1, 2)),
]  # fmt: skip
"""Bounds that leave one step by which a role grows: a group, or one more of it."""


@pytest.mark.parametrize("profile", [PROFILE, None], ids=["model", "no model"])
@pytest.mark.parametrize(("role", "left"), STEPS)
def test_the_limit_that_is_named_forbids_every_step_that_those_before_leave(
    left: Bounds, profile: object, role: Role
) -> None:
    """Bounds come before the budget, and it before placement."""

    def reason(**over: Any) -> Reason:
        got = decide(short_of(role, **{"bounds": left, "profile": profile, **over}))
        assert (got.outcome, got.to) == ("Blocked", ONE)
        return got.reason

    full = bounds(1, 1, 1)
    assert reason(bounds=full, budget=POOR, placement=NOWHERE) is Reason.AT_MAXIMUM
    assert reason(budget=POOR, placement=NOWHERE) is Reason.BUDGET_EXHAUSTED
    assert reason(placement=NOWHERE) is Reason.PLACEMENT_INFEASIBLE


@pytest.mark.parametrize(
    ("role", "current", "left"),
    [("prefill", Counts(1, 1, 3), bounds(1, 1, 4)), ("decode", Counts(1, 2, 1), bounds(1, 3, 1))],
)
def test_bounds_bind_where_only_the_role_that_is_not_short_may_grow(
    role: Role, current: Counts, left: Bounds
) -> None:
    got = decide(short_of(role, current, bounds=left))
    assert (got.outcome, got.reason) == ("Blocked", Reason.AT_MAXIMUM)


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"bounds": bounds(1, 1, 1)}, "bounds (groups <= 1, prefill <= 1, decode <= 1) allows no"),
        ({"budget": (*POOR, BudgetLimit("gpu", 3))}, "budget (16 huawei.com/Ascend910, 3 gpu)"),
        ({"placement": (PlacementLimit(1, 1, 1, "leaf-a is full"), *NOWHERE[1:])},
         "placement (at most 1 P/D groups of 1P1D: leaf-a is full, at most 0 P/D groups of 2P1D, "),
    ],
    ids=["bounds", "budget", "placement"],
)  # fmt: skip
def test_the_limit_is_named_with_its_numbers(over: dict[str, Any], says: str) -> None:
    assert says in decide(short_of("prefill", **over)).message


# --- how much ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "current", "want"),
    [("prefill", ONE, Counts(1, 2, 1)), ("decode", ONE, Counts(1, 1, 2)),
     ("prefill", Counts(2, 1, 1), Counts(1, 3, 2)), ("decode", Counts(1, 2, 2), Counts(1, 2, 3))],
    ids=str,
)  # fmt: skip
def test_without_a_model_a_role_grows_by_one_and_the_other_keeps_what_it_has(
    role: Role, current: Counts, want: Counts
) -> None:
    got = decide(short_of(role, current, profile=None))
    assert (got.outcome, got.to) == ("Applied", want)
    assert got.memory.pressure_prefill == got.memory.pressure_decode == 1.0


def test_all_that_the_bounds_allow_may_be_needed() -> None:
    busy = tuple(window(s, rate=44.0, output=10.0) for s in SPANS)
    tight = bounds(2, 3, 2)
    got = decide(decision_input(ONE, sample=sample(busy), bounds=tight, memory=new(ONE)))
    assert (got.outcome, got.to.groups, got.to.prefill) == ("Applied", 2, 3)


PRESSED = LoopMemory(
    settled_at=0.0, settled_counts=TODAY, pressure_prefill=3.0, pressure_decode=3.0,
    pressure_at=5000.0,
)  # fmt: skip


def pressures(rate: float, attainment: float, **over: Any) -> tuple[float, float]:
    """What each role is found to feel, of one prefill and three decodes at this rate."""
    seen = sample(at=5000.0, rate=rate, attainment=attainment, **over.pop("sample", {}))
    after = decide(decision_input(TODAY, sample=seen, **over)).memory
    return after.pressure_prefill, after.pressure_decode


def test_the_role_that_is_short_feels_more_and_the_other_does_not() -> None:
    prefill, decode = pressures(5.0, 0.9)
    assert prefill > 1.0
    assert decode == 1.0
    prefill, decode = pressures(5.0, 0.9, sample={"decode_overload": 399.0})
    assert decode > 1.0
    assert prefill == 1.0


@pytest.mark.parametrize(("attainment", "most"), [(0.9, 2), (0.3, 2)])
def test_one_growth_by_evidence_adds_a_quarter_at_most(attainment: float, most: int) -> None:
    current = Counts(1, 1, 3)
    seen = sample(at=5000.0, rate=5.0, attainment=attainment)
    got = decide(decision_input(current, sample=seen))
    assert got.reason is Reason.PREFILL_SHORTAGE
    assert 1 < got.to.total("prefill") <= most


def test_what_a_role_is_found_to_feel_is_bounded() -> None:
    assert max(pressures(2.0, 0.05, memory=PRESSED)) <= MAX_PRESSURE == 4.0


FLOORS: list[tuple[str, float, float, Counts, Counts]] = [
    ("short answers: prefills", 9.0, 20.0, Counts(1, 1, 3), Counts(1, 2, 2)),
    ("long answers: decodes", 6.0, 400.0, Counts(1, 2, 3), Counts(1, 2, 5)),
]


@pytest.mark.parametrize(
    ("rate", "output", "current", "want"), [r[1:] for r in FLOORS], ids=[r[0] for r in FLOORS]
)
def test_the_floor_raises_the_role_that_would_miss_most(
    rate: float, output: float, current: Counts, want: Counts
) -> None:
    seen = tuple(window(s, rate=rate, output=output) for s in SPANS)
    got = decide(decision_input(current, sample=sample(seen), memory=new(current)))
    assert (got.reason, got.to) == (Reason.MODEL_FLOOR, want)


# --- what no number of instances helps -----------------------------------------------------------


@pytest.mark.parametrize(
    ("slo", "says"),
    [
        (replace(SLO, ttft=0.05), "T_p of a single request on an idle prefill instance is 0.130 s, "
         "above its target of 0.050 s"),
        (replace(SLO, tpot=0.02), "one decode step of a single request on an idle decode instance "
         "is 0.030 s, above its target of 0.020 s"),
    ],
    ids=["prefill", "decode"],
)  # fmt: skip
def test_a_target_below_what_one_request_takes_is_named(slo: Any, says: str) -> None:
    got = decide(failing(slo=slo))
    assert (got.outcome, got.reason, got.to) == ("Blocked", Reason.SLO_UNREACHABLE, TODAY)
    assert says in got.message


@pytest.mark.parametrize(
    ("attainment", "settled", "reason"),
    [(0.95, 4000.0, Reason.STEADY), (0.9499, 4000.0, Reason.SLO_UNREACHABLE),
     (0.949, 4000.0, Reason.SLO_UNREACHABLE), (0.95, 4990.0, Reason.SLO_UNREACHABLE)],
    ids=["measured to be met", "just missed", "surely missed", "not measured yet"],
)  # fmt: skip
def test_a_model_that_sees_no_way_is_not_told_while_the_target_is_met(
    attainment: float, settled: float, reason: Reason
) -> None:
    many = tuple(window(s, rate=1000.0, attainment=attainment) for s in SPANS)
    memory = LoopMemory(settled_at=settled, settled_counts=TODAY)
    slow = dilated(PROFILE, 1.6)
    got = decide(decision_input(sample=sample(many, at=5000.0), memory=memory, profile=slow))
    assert got.reason is reason


def test_devices_are_counted_by_what_each_role_takes() -> None:
    more: dict[str, Any] = {
        "prefill_devices": RoleDevices("gpu", 1),
        "decode_devices": RoleDevices("gpu", 3),
    }
    got = decide(short_of("prefill", **more))
    devices = got.to.total("prefill") + 3 * got.to.total("decode") - 4
    assert f", {devices:+d} devices" in got.message
