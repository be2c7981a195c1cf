"""One round: owner, trust, one change at a time, evidence, model, surplus."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.ratio_values import (
    BOUNDS,
    NPU,
    SLO,
    TODAY,
    decision_input,
    new,
    prefill_window,
    sample,
    window,
)
from tests.unit.ratio.test_surplus import surplus

from pdserve.ratio.decide import decide, decide_placed
from pdserve.ratio.types import (
    Bounds,
    BudgetLimit,
    Counts,
    DecisionInput,
    ExpectedTraffic,
    LoopMemory,
    PastChange,
    PlacementLimit,
    Range,
    Reason,
    ScenarioSample,
    Unknown,
)

NAN = float("nan")


def failing(current: Counts = TODAY, **over: Any) -> DecisionInput:
    return decision_input(current, sample=sample(at=5000.0, attainment=0.6), **over)


# --- owner ------------------------------------------------------------------------------------


def test_external_changes_nothing_whatever_is_measured() -> None:
    got = decide(failing(mode="External"))
    assert (got.outcome, got.reason, got.to) == ("Held", Reason.EXTERNAL_OWNER, Counts(1, 1, 3))


@pytest.mark.parametrize("measured", [sample(attainment=0.1), Unknown("away")])
def test_fixed_states_the_counts(measured: ScenarioSample | Unknown) -> None:
    inp = decision_input(mode="Fixed", fixed=Counts(2, 3, 1), sample=measured)
    got = decide(inp)
    assert (got.outcome, got.to) == ("Applied", Counts(2, 3, 1))
    there = replace(inp, current=Counts(2, 3, 1))
    assert decide(there).outcome == "Held"


@pytest.mark.invariant(3)
def test_counts_outside_the_bounds_go_to_the_nearest_inside() -> None:
    inp = decision_input(Counts(1, 8, 3), sample=Unknown("away"))
    got = decide(inp)
    assert (got.outcome, got.reason, got.to) == (
        "Applied", Reason.BOUNDS_CHANGED, Counts(1, 6, 3),
    )  # fmt: skip


def test_advise_computes_the_same_and_says_advised() -> None:
    auto, advise = decide(failing()), decide(failing(mode="Advise"))
    assert auto.outcome == "Applied"
    assert auto.changes
    assert advise.outcome == "Advised"
    assert not advise.changes
    assert (advise.to, advise.reason, advise.message) == (auto.to, auto.reason, auto.message)


# --- trust ------------------------------------------------------------------------------------

BAD: dict[str, tuple[ScenarioSample | Unknown, str]] = {
    "source away": (Unknown("http://prom:9090: ConnectionError"), "ConnectionError"),
    "stale": (sample(age=61.0, attainment=0.5), "61 s old, limit 60 s"),
    "age unknown": (sample(age=Unknown("no live gateway has samples")), "no live gateway"),
    "age NaN": (sample(age=NAN), "nan is not a count"),
    "partial": (
        sample(missing=("gw-2",), missing_count=1, attainment=0.5),
        "1 of 3 pods report nothing (gw-2)",
    ),
    "no gateway": (sample(live=0), "no gateway"),
    "no window": (sample(()), "no window"),
    "too few scrapes": (sample((window(scrapes=2.0),)), "only 2 scrapes in 60 s, need 3"),
    "scrapes unknown": (sample((window(scrapes=Unknown("x")),)), "scrapes: x"),
    "offered NaN": (sample((window(offered=NAN),)), "offered requests: nan"),
    "offered infinite": (sample((window(offered=float("inf")),)), "inf is not a count"),
    "offered negative (reset not absorbed)": (sample((window(offered=-5.0),)), "-5.0"),
    "met unknown": (sample((window(met=Unknown("NaN")),)), "met the SLO: NaN"),
    "more met than offered": (sample((window(offered=10.0, met=100.0),)), "contradictory"),
}


@pytest.mark.invariant(6)
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("current", [Counts(1, 1, 1), Counts(4, 6, 6)])
def test_nothing_scales_on_data_that_cannot_be_trusted(name: str, current: Counts) -> None:
    measured, word = BAD[name]
    waited_long = LoopMemory(settled_at=0.0, settled_counts=current, surplus_since=1.0)
    got = decide(decision_input(current, sample=measured, memory=waited_long))
    assert (got.outcome, got.reason, got.to) == ("Held", Reason.HOLD_NO_DATA, current)
    assert word in got.message
    assert got.memory.surplus_since is None, "a surplus must be confirmed anew after an outage"


def test_a_few_missing_of_many_are_tolerated() -> None:
    got = decide(decision_input(sample=sample(live=30, missing=("p",), missing_count=1)))
    assert got.reason is not Reason.HOLD_NO_DATA


def test_other_quantities_missing_do_not_block() -> None:
    unknown = Unknown("x")
    nothing = replace(
        prefill_window(), batches=unknown, compute_seconds=unknown, requests=unknown, tokens=NAN
    )
    got = decide(decision_input(sample=sample(prefill=nothing, ttft_seconds=Unknown("x"))))
    assert got.reason in (Reason.STEADY, Reason.CONFIRMING_SURPLUS)


# --- one change at a time ----------------------------------------------------------------------


def test_a_change_in_flight_blocks_the_next_and_is_named() -> None:
    first = decide(failing(ready_decode=2))
    assert first.reason is Reason.IN_FLIGHT
    assert "decode 2/3" in first.message
    later = decide(failing(ready_decode=2, memory=first.memory, now=5599.0))
    assert later.reason is Reason.IN_FLIGHT


def test_instances_that_never_come_do_not_block_for_ever() -> None:
    stuck = LoopMemory(unready_since=4000.0)
    got = decide(failing(ready_decode=2, memory=stuck))
    assert got.outcome == "Applied"


def test_a_draining_surplus_instance_is_in_flight_too() -> None:
    assert decide(failing(ready_decode=4)).reason is Reason.IN_FLIGHT


def test_growth_keeps_a_distance_to_the_last_change() -> None:
    change = PastChange(4990.0)
    got = decide(failing(changes=(change,)))
    assert got.reason is Reason.DWELL
    assert "next change in 50 s" in got.message


def test_what_was_measured_before_the_counts_took_effect_is_no_evidence() -> None:
    got = decide(failing(memory=new()))
    assert (got.outcome, got.reason) == ("Held", Reason.STEADY)
    assert "no window yet covers" in got.message


@pytest.mark.parametrize(("lag", "outcome"), [(0.0, "Applied"), (1.0, "Held")])
def test_a_window_that_ended_a_while_ago_began_earlier_too(lag: float, outcome: str) -> None:
    # 180 s, and the 10 s that a request of before may take.
    filled = LoopMemory(settled_at=4809.5, settled_counts=Counts(1, 1, 3))
    inp = failing(memory=filled)
    assert isinstance(inp.sample, ScenarioSample)
    assert decide(replace(inp, sample=replace(inp.sample, lag=lag))).outcome == outcome


# --- growth -------------------------------------------------------------------------------------


def test_evidence_grows_the_role_that_is_short() -> None:
    got = decide(failing())
    assert (got.outcome, got.reason) == ("Applied", Reason.PREFILL_SHORTAGE)
    assert got.to.total("prefill") > 1
    assert "60.0% of" in got.message
    assert "prefill is short" in got.message
    assert got.memory.pressure_prefill > 1.0


def test_decode_pressure_never_grows_prefill() -> None:
    waiting = prefill_window(kv_wait_seconds=240 * 2.0)
    inp = failing(Counts(1, 2, 1))
    inp = replace(inp, sample=sample(attainment=0.6, prefill=waiting, ttft_seconds=2.5))
    got = decide(inp)
    assert got.reason in (Reason.DECODE_SHORTAGE, Reason.MODEL_FLOOR)
    assert got.to.total("decode") > 1
    assert got.to.total("prefill") <= 2


def test_a_new_failure_is_not_hidden_by_a_long_healthy_past() -> None:
    windows = (window(60.0, 6.0, 0.3), window(180.0, 6.0, 0.9), window(600.0, 6.0, 0.97))
    got = decide(decision_input(sample=sample(windows)))
    assert got.outcome == "Applied"


def test_the_model_is_a_floor_before_anything_fails() -> None:
    got = decide(decision_input(sample=sample(rate=9.0), memory=new()))
    assert (got.outcome, got.reason) == ("Applied", Reason.MODEL_FLOOR)
    assert "predicted" in got.message


def test_a_role_moves_at_constant_devices_before_the_scenario_grows() -> None:
    windows = tuple(window(s, rate=6.0, prompt=4000.0, output=40.0) for s in (60.0, 180.0, 600.0))
    current = Counts(1, 2, 5)
    got = decide(decision_input(current, sample=sample(windows), memory=new(current)))
    assert got.outcome == "Applied"
    assert got.to.total("prefill") > 2
    assert got.to.total("prefill") + got.to.total("decode") == 7
    assert "+0 devices" in got.message


def test_without_a_profile_one_step_at_a_time() -> None:
    got = decide(failing(profile=None))
    assert (got.outcome, got.to) == ("Applied", Counts(1, 2, 3))
    assert "no profile yet" in got.message
    full = decide(failing(Counts(1, 6, 3), profile=None, bounds=_bounds(1, 6, 3)))
    assert (full.outcome, full.reason) == ("Blocked", Reason.AT_MAXIMUM)


def test_expected_lengths_serve_until_something_completed() -> None:
    nothing = tuple(window(s, 9.0, 0.0, completed=0.0) for s in (60.0, 180.0, 600.0))
    got = decide(
        decision_input(sample=sample(nothing), expected=ExpectedTraffic(1500.0, 200.0, 4.0, 0.0))
    )
    assert got.outcome == "Applied"


def test_failures_that_scaling_does_not_mend_are_said_not_scaled() -> None:
    got = decide(decision_input(sample=sample(attainment=0.5, failed=115.0)))
    assert (got.outcome, got.reason) == ("Held", Reason.REQUESTS_FAIL)
    assert "115 of 240" in got.message


# --- limits -------------------------------------------------------------------------------------


def _bounds(groups: int, prefill: int, decode: int) -> Bounds:
    return Bounds(Range(1, groups), Range(1, prefill), Range(1, decode))


def test_bounds_block_and_say_which() -> None:
    got = decide(failing(bounds=_bounds(1, 1, 3)))
    assert (got.outcome, got.reason) == ("Blocked", Reason.AT_MAXIMUM)
    assert "groups <= 1, prefill <= 1, decode <= 3" in got.message


def test_budget_blocks_and_says_so() -> None:
    inp = failing(budget=(BudgetLimit(NPU.resource, 32),))
    inp = replace(inp, sample=sample(rate=9.0, attainment=0.6))
    got = decide(inp)
    assert got.to.total("prefill") + got.to.total("decode") <= 4
    if got.outcome == "Blocked":
        assert got.reason is Reason.BUDGET_EXHAUSTED
        assert "32 huawei.com/Ascend910" in got.message


def test_a_partly_sufficient_growth_is_taken_and_says_what_limits() -> None:
    got = decide(
        decision_input(
            Counts(1, 1, 1),
            bounds=_bounds(1, 2, 2),
            sample=sample(rate=30.0, attainment=0.2, decode_overload=500.0),
        )
    )
    assert (got.outcome, got.to) == ("Applied", Counts(1, 2, 2))
    assert "the most that bounds" in got.message


def test_placement_is_asked_until_something_stands() -> None:
    asked: list[Counts] = []

    def most(counts: Counts) -> PlacementLimit | None:
        asked.append(counts)
        if counts.prefill > 1:
            return PlacementLimit(counts.prefill, counts.decode, 0, "largest is 1P3D")
        return None

    inp, got = decide_placed(failing(), most)
    assert len(asked) > 1
    assert got.outcome == "Applied"
    assert got.to.groups > 1
    assert got.to.prefill == 1
    assert decide(inp) == got, "the answers are in the input: deciding again needs no asking"


def test_no_room_anywhere_blocks_with_the_reason() -> None:
    def nowhere(counts: Counts) -> PlacementLimit:
        return PlacementLimit(1, 1, 1, "largest P/D group that fits: none")

    inp, got = decide_placed(failing(bounds=_bounds(4, 1, 3)), nowhere)
    assert (got.outcome, got.reason) == ("Blocked", Reason.PLACEMENT_INFEASIBLE)
    assert "largest P/D group that fits: none" in got.message
    assert decide(inp) == got


def test_asking_placement_ends() -> None:
    asked = 0

    def grudging(counts: Counts) -> PlacementLimit:
        nonlocal asked
        asked += 1
        return PlacementLimit(counts.prefill, counts.decode, counts.groups - 1)

    wide = Bounds(Range(1, 16), Range(1, 16), Range(1, 16))
    _, got = decide_placed(failing(bounds=wide), grudging)
    assert asked <= 17
    assert got.outcome in ("Blocked", "Applied")
    assert got.to.groups <= 1


def test_an_slo_no_instance_can_meet_is_said_not_chased() -> None:
    tight = replace(SLO, ttft=0.05)
    got = decide(failing(slo=tight))
    assert (got.outcome, got.reason) == ("Blocked", Reason.SLO_UNREACHABLE)
    assert "more instances do not help" in got.message
    fine = decide(decision_input(slo=tight))
    assert fine.outcome == "Held", (
        "measured attainment meets the target although the model predicts a miss"
    )


@pytest.mark.invariant(8)
def test_the_same_input_gives_the_same_decision() -> None:
    for inp in (failing(), surplus(), surplus(lasted=20.0), decision_input()):
        assert decide(inp) == decide(inp)


def test_every_decision_carries_its_numbers() -> None:
    numbers = dict(decide(failing()).inputs)
    assert numbers["attainment"] == "0.6000"
    assert numbers["rate"] == "4.000"
    assert {"capacityPrefill", "capacityDecode", "loadPrefill", "loadDecode"} <= set(numbers)
    assert len(numbers) <= 24
    assert BOUNDS.clamp(decide(failing()).to) == decide(failing()).to
