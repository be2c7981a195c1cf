"""Each law on an example of the document that it comes from."""

from __future__ import annotations

import math

import pytest

from pdserve.ratio.presets import preset
from pdserve.ratio.types import Bounds, Counts, Demand, Range
from pdserve.sim.policies import aibrix, dynamo, hpa, kthena, llm_d, planners, square_root
from pdserve.sim.policies.base import PolicyWorld
from pdserve.sim.policies.forecast import KalmanTrend
from pdserve.sim.policies.signals import decode_batch, decode_rate, prefill_rate
from pdserve.sim.shapes import DRAWN, SLO

PROFILE = preset("llama2-70b-h100x8", 4, 64)
WORLD = PolicyWorld(DRAWN["constant"], PROFILE)
CHAT = Demand(20.0, 1200.0, 1200.0, 1200.0**2 * 1.28, 200.0)


@pytest.mark.parametrize(
    ("current", "values", "target", "want"),
    [
        # kubernetes.io: 200m of 100m doubles, 50m halves, a ratio near 1.0 does nothing
        (3, [200.0] * 3, 100.0, 6),
        (4, [50.0] * 4, 100.0, 2),
        (3, [108.0] * 3, 100.0, 3),
        (3, [93.0] * 3, 100.0, 3),
        # not yet ready pods count as 0 % when growing: 2 of 4 at 180 % come to 90 %, no growth
        (4, [180.0, 180.0], 100.0, 4),
        (4, [300.0, 300.0], 100.0, 6),
        (4, [], 100.0, 4),
    ],
)
def test_hpa(current: int, values: list[float], target: float, want: int) -> None:
    assert hpa.desired(current, values, target) == want


def test_hpa_shrinks_to_the_largest_count_of_five_minutes_and_grows_within_limits() -> None:
    settled = hpa.Stabiliser()
    assert settled.settle(0.0, 3, 40) == 7, "4 pods or 100 %, whichever is more"
    assert settled.settle(15.0, 10, 40) == 20
    assert settled.settle(30.0, 10, 4) == 10
    assert settled.settle(314.0, 10, 4) == 10, "the 40 is 299 s old"
    assert settled.settle(330.0, 10, 5) == 5


@pytest.mark.parametrize(
    ("current", "use", "want"),
    [(2, 45, 3), (2, 35, 3), (2, 90, 4), (6, 20, 4), (6, 18, 4), (6, 10, 3), (2, 33, 2), (2, 27, 2),
     (1, 3, 1)],
)  # fmt: skip
def test_aibrix_apa_as_in_its_own_tests(current: int, use: float, want: int) -> None:
    """pkg/controller/podautoscaler/algorithm/apa_test.go: target 30, rates 2, tolerances 0.1."""
    assert aibrix.apa(current, use, 30.0) == want


def test_kpa_sizes_100_requests_at_10_each_of_70_percent_as_15() -> None:
    assert aibrix.kpa(10, 100.0, 10 * 0.7) == 15
    assert aibrix.kpa(2, 100.0, 10.0) == 4, "kpa_test.go: at most doubled"
    assert aibrix.kpa(4, 5.0, 10.0) == 2, "kpa_test.go: at most halved"


@pytest.mark.parametrize(
    ("counts", "least", "most", "want"),
    [
        ((1, 8), 0.25, 1.0, (2, 8)),
        ((6, 3), 0.25, 1.0, (6, 6)),
        ((2, 4), 0.25, 1.0, (2, 4)),
        ((0, 0), 0.25, 1.0, (0, 0)),
        ((0, 4), 0.25, 1.0, (1, 4)),
        ((1, 40), 1.0, 2.0, (10, 10)),  # prefill's bound of 10 is met: decode is lowered
    ],
)
def test_kthena_repairs_the_ratio_upwards(
    counts: tuple[int, int], least: float, most: float, want: tuple[int, int]
) -> None:
    bounds = Bounds(Range(1, 1), Range(0, 10), Range(0, 40))
    assert kthena.repaired(*counts, least, most, bounds) == want


@pytest.mark.parametrize(
    ("replicas", "ready", "s", "want"),
    [
        (4, 4, 0.50, 4),  # between both thresholds
        (4, 4, 0.55, 4),
        (4, 4, 1.10, 8),  # twice the threshold doubles
        (4, 2, 1.10, 4),  # half of them start: credit for what comes
        (10, 10, 0.20, 5),
        (10, 5, 0.20, 5),  # no credit when shrinking
        (1, 1, 0.01, 1),
        (8, 8, 2.0, 30),
    ],
)
def test_llm_d_law(replicas: int, ready: int, s: float, want: int) -> None:
    assert llm_d.law(replicas, ready, s) == want


def test_llm_d_prefills_for_tokens_in_flight() -> None:
    assert llm_d.prefills_for_tokens(60_000.0, 10_000.0, 2.0) == 3
    assert llm_d.prefills_for_tokens(0.0, 10_000.0, 2.0) == 1


def test_dynamo_throughput_is_demand_over_the_rate_of_one_engine_within_its_target() -> None:
    found = dynamo.throughput_counts(WORLD, CHAT)
    prefill, decode = prefill_rate(PROFILE, CHAT, 1.0), decode_rate(PROFILE, CHAT, 0.05)
    assert found == Counts(1, math.ceil(20 / prefill), math.ceil(20 / decode)) == Counts(1, 2, 5)


@pytest.mark.parametrize(
    ("waits", "want"),
    [([0.95, 0.99], 1), ([0.95, 0.1], 0), ([0.3, 0.2], -1), ([0.5, 0.3], 0), ([0.1], 0), ([], 0)],
)
def test_dynamo_load_steps_of_prefill(waits: list[float], want: int) -> None:
    """Own compute 0.1 s of 1 s: up when all are late, down when 0.72 s hold with one less."""
    assert dynamo.step_for_prefill(waits, 0.1, 1.0) == want


def test_dynamo_load_steps_of_decode() -> None:
    assert dynamo.step_for_decode([0.06, 0.07], [0.1, 0.1], 0.05) == 1
    assert dynamo.step_for_decode([0.04, 0.07], [0.05, 0.1], 0.05) == 0
    assert dynamo.step_for_decode([0.03, 0.03], [0.039, 0.039], 0.05) == -1
    assert dynamo.step_for_decode([0.03], [0.03], 0.05) == 0


def test_the_mm1_planner_lets_a_prefill_take_mu_less_1_over_ttft() -> None:
    """In tokens: T_max - L_in / TTFT; 10,000 tokens/s of 1,000-token prompts within 1 s: 9 /s."""
    assert planners.mm1_rate(10.0, 1.0) * 1000 == 10_000 - 1000 / 1.0
    assert planners.mm1_rate(0.5, 1.0) == 0.0
    mu = prefill_rate(PROFILE, CHAT, 1.0)
    assert planners.mm1_counts(PROFILE, SLO, CHAT).prefill == math.ceil(20 / (mu - 1.0))


def test_the_largest_decode_batch_meets_tpot_and_the_next_does_not() -> None:
    batch = decode_batch(PROFILE, CHAT, SLO.tpot)
    steps = [PROFILE.decode.step_seconds(b, CHAT.context_tokens) for b in (batch, batch + 1)]
    assert steps[0] <= SLO.tpot < steps[1]
    assert planners.token_counts(PROFILE, SLO, CHAT).decode == math.ceil(4000 / (batch / 0.05))
    counts = planners.dopd_counts(PROFILE, SLO, CHAT)
    ratio = decode_rate(PROFILE, CHAT, 0.05) / prefill_rate(PROFILE, CHAT, 1.0)
    assert counts.prefill == math.ceil(ratio * counts.decode)


def test_square_root_staffing() -> None:
    """Load R in Erlangs: R + beta * sqrt(R), e.g. 100 + 1 * 10."""
    assert square_root.staffed(100.0, 1.0) == 110.0
    assert square_root.needed(WORLD, CHAT) == Counts(1, 3, 6)


def test_the_kalman_trend_follows_a_line_and_a_constant() -> None:
    line, flat = KalmanTrend(), KalmanTrend()
    for k in range(60):
        ahead, same = line.next(10.0 + 2.0 * k), flat.next(7.0)
    assert ahead == pytest.approx(10.0 + 2.0 * 60, rel=0.02)
    assert same == pytest.approx(7.0, rel=0.01)
