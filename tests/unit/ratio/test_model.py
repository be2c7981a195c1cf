"""Capacity from compute at the batch that would run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.ratio_values import PROFILE, SLO

from pdserve.ratio.model import build, largest_decode_batch
from pdserve.ratio.profile import DecodeProfile, PerformanceProfile, PrefillProfile
from pdserve.ratio.types import Demand

DEMAND = Demand(4.0, 1500.0, 1500.0, 1500.0**2 * 1.1, 200.0)


def profile(
    prefill: tuple[float, float, float] = (0.0, 1e-4, 0.0),
    decode: tuple[float, float, float] = (0.03, 0.0, 0.0),
    slots: tuple[int, int] = (4, 32),
) -> PerformanceProfile:
    return PerformanceProfile(PrefillProfile(*prefill), DecodeProfile(*decode), *slots)


def test_prefill_capacity_is_read_at_the_best_batch_not_at_batch_1() -> None:
    costly_start = profile(prefill=(0.2, 1e-5, 0.0))
    model = build(costly_start, DEMAND, SLO)
    assert model.prefill.capacity == pytest.approx(4 / (0.2 + 4 * 0.015))
    assert model.prefill.capacity > 1 / (0.2 + 0.015) * 3


def test_batches_that_leave_no_time_before_ttft_are_no_option() -> None:
    slow = profile(prefill=(0.0, 4e-4, 0.0))  # 0.6 s alone, 1.2 s for two
    model = build(slow, DEMAND, SLO)
    assert [o.batch for o in model.prefill.options] == [1]
    assert model.prefill.options[0].slack == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("slots", "want"), [(1, [1]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 9])]
)
def test_batches_that_are_tried_are_powers_of_two_and_all_slots(
    slots: int, want: list[int]
) -> None:
    model = build(profile(prefill=(0.01, 1e-6, 0.0), slots=(slots, 32)), DEMAND, SLO)
    assert [o.batch for o in model.prefill.options] == want


@pytest.mark.parametrize(
    ("uncached", "squared", "cv2"),
    [(1500.0, 2.0, 1.0), (1500.0, 1.0, 0.1), (1500.0, 9.0, 4.0), (0.0, 2.0, 1.0)],
    ids=["as measured", "never regular", "bounded", "no work"],
)
def test_prompt_work_spreads_as_its_two_moments_say(
    uncached: float, squared: float, cv2: float
) -> None:
    demand = replace(DEMAND, uncached_tokens=uncached, uncached_squared=squared * uncached**2)
    model = build(profile(), demand, SLO)
    assert model.prefill.cv2 == pytest.approx(cv2)
    assert model.decode.cv2 == 1.0


def test_work_takes_some_time_however_little() -> None:
    free = profile(prefill=(0.0, 0.0, 0.0), decode=(0.0, 0.0, 0.0))
    model = build(free, DEMAND, SLO)
    assert (model.prefill.alone, model.decode.options[0].seconds) == (1e-6, 1e-6)


def test_an_option_at_its_very_target_is_one() -> None:
    exact = profile(prefill=(1.0, 0.0, 0.0), decode=(0.045, 0.0, 0.0))
    model = build(exact, DEMAND, SLO)
    assert [(o.batch, o.slack) for o in model.prefill.options] == [(b, 0.0) for b in (1, 2, 4)]
    assert model.decode.options[0].batch == 32
    assert model.decode.utilisation(2, 1.0) == pytest.approx(199 * 0.045 / 64)


def test_decode_capacity_is_at_the_largest_batch_that_meets_tpot() -> None:
    linear = profile(decode=(0.01, 0.0025, 0.0))
    slo = replace(SLO, tpot=0.046)
    assert largest_decode_batch(linear, DEMAND, slo) == 14  # 0.01 + 14 * 0.0025 = 0.045
    model = build(linear, DEMAND, slo)
    assert model.decode.capacity == pytest.approx(14 / (199 * 0.045))


@pytest.mark.parametrize("each", [0.0025, 0.0001], ids=["TPOT is the limit", "slots are"])
def test_what_gateways_hold_back_from_decodes_waits_as_long_as_ttft_leaves(each: float) -> None:
    model = build(profile(decode=(0.01, each, 0.0)), DEMAND, SLO)
    left = SLO.ttft - model.prefill.alone
    assert model.decode.options[0].slack == pytest.approx(SLO.handoff + left / 2)
    none = build(profile(prefill=(2.0, 0.0, 0.0), decode=(0.01, each, 0.0)), DEMAND, SLO)
    assert none.decode.options[0].slack == SLO.handoff


@pytest.mark.parametrize(
    ("bad", "role"),
    [(profile(prefill=(0.0, 1e-3, 0.0)), "prefill"), (profile(decode=(0.05, 0.0, 0.0)), "decode")],
)
def test_a_target_missed_by_a_single_request_leaves_no_option(
    bad: PerformanceProfile, role: str
) -> None:
    part = build(bad, DEMAND, SLO).role("prefill" if role == "prefill" else "decode")
    assert part.options == ()
    assert part.capacity == 0.0
    assert part.alone > part.target
    assert part.misses(10, 1.0) == 1.0
    assert part.late(10, 1.0) == 1.0
    assert part.utilisation(10, 1.0) == float("inf")


def test_one_output_token_costs_decode_next_to_nothing() -> None:
    model = build(PROFILE, replace(DEMAND, output_tokens=1.0), SLO)
    assert model.decode.misses(1, 100.0) < 1e-6


def test_more_instances_never_predict_worse() -> None:
    model = build(PROFILE, DEMAND, SLO)
    for part in (model.prefill, model.decode):
        for values in (
            [part.misses(n, 9.0) for n in range(1, 12)],
            [part.late(n, 9.0) for n in range(1, 12)],
        ):
            assert values == sorted(values, reverse=True)


def test_pressure_and_stress_raise_only_what_the_role_feels() -> None:
    model = replace(build(PROFILE, DEMAND, SLO), pressure_decode=1.5)
    assert model.felt("prefill") == 4.0
    assert model.felt("decode") == 6.0
    assert model.felt("decode", 2.0) == 12.0
