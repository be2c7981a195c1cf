"""Posterior of attainment: sure when it should be, calm when it should be."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from tests.support.ratio_values import window

from pdserve.ratio.evidence import beta_cdf, hopeless, posterior_below, weigh
from pdserve.ratio.types import LoopSettings, Unknown

SETTINGS = LoopSettings()


@pytest.mark.parametrize(
    ("alpha", "beta", "x", "want"),
    [
        (1.0, 1.0, 0.3, 0.3),
        (2.0, 3.0, 0.4, 0.5248),
        (5.0, 1.0, 0.9, 0.9**5),
        (1.0, 4.0, 0.2, 1 - 0.8**4),
        (0.5, 0.5, 0.5, 0.5),
    ],
)
def test_beta_cdf(alpha: float, beta: float, x: float, want: float) -> None:
    assert beta_cdf(alpha, beta, x) == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize(("alpha", "beta"), [(300.0, 20.0), (20.0, 3.5), (2.0, 700.0)])
def test_beta_cdf_against_numeric_integration(alpha: float, beta: float) -> None:
    def density(x: float) -> float:
        log = math.lgamma(alpha + beta) - math.lgamma(alpha) - math.lgamma(beta)
        return math.exp(log + (alpha - 1) * math.log(x) + (beta - 1) * math.log1p(-x))

    steps, x = 20_000, alpha / (alpha + beta) * 0.98
    area = sum(density((i + 0.5) * x / steps) for i in range(steps)) * x / steps
    assert beta_cdf(alpha, beta, x) == pytest.approx(area, abs=1e-6)


def test_beta_cdf_ends_and_symmetry() -> None:
    assert (beta_cdf(3.0, 4.0, 0.0), beta_cdf(3.0, 4.0, 1.0)) == (0.0, 1.0)
    assert beta_cdf(30.0, 4.0, 0.8) == pytest.approx(1 - beta_cdf(4.0, 30.0, 0.2))


def test_a_clear_miss_is_sure_and_a_hit_is_not() -> None:
    assert posterior_below(300, 240, 0.95, 0.99) > 0.99
    assert posterior_below(300, 299, 0.95, 0.99) < 0.01


def test_few_requests_prove_nothing() -> None:
    assert posterior_below(5, 4, 0.95, 0.99) < 0.9


def test_a_healthy_service_seldom_alarms_even_at_15_requests() -> None:
    rng = random.Random(3)
    alarms = 0
    for _ in range(2000):
        met = sum(rng.random() < 0.97 for _ in range(15))
        alarms += posterior_below(15, met, 0.95, 0.97) > 0.9
    assert alarms / 2000 < 0.05


def test_window_grows_until_there_are_enough_requests() -> None:
    windows = [window(s, rate=1.0) for s in (60.0, 180.0, 600.0)]
    found = weigh(windows, 1e9, 0.95, 0.99, SETTINGS)
    assert found is not None
    assert found.window.seconds == 600.0
    busy = [window(s, rate=6.0) for s in (60.0, 180.0, 600.0)]
    found = weigh(busy, 1e9, 0.95, 0.99, SETTINGS)
    assert found is not None
    assert found.window.seconds == 60.0


def test_windows_older_than_the_present_counts_do_not_testify() -> None:
    windows = [window(s, rate=2.0) for s in (60.0, 180.0, 600.0)]
    found = weigh(windows, 200.0, 0.95, 0.99, SETTINGS)
    assert found is not None
    assert found.window.seconds == 180.0
    assert weigh(windows, 179.0, 0.95, 0.99, SETTINGS) is None


def test_windows_without_scrapes_counts_or_requests_do_not_testify() -> None:
    unusable = [
        window(scrapes=2.0),
        window(scrapes=Unknown("away")),
        window(met=Unknown("NaN")),
        window(rate=0.0),
    ]
    assert weigh(unusable, 1e9, 0.95, 0.99, SETTINGS) is None


def test_extrapolated_counts_never_exceed_the_offered() -> None:
    found = weigh([window(met=350.0, offered=340.0)], 1e9, 0.95, 0.99, SETTINGS)
    assert found is not None
    assert found.attainment == 1.0


# --- which window, and how much a prediction is worth ---------------------------------------------


@pytest.mark.parametrize(
    ("offered", "usable", "scrapes", "want"),
    [
        ((300.0, 900.0), 180.0, 3.0, 60.0),
        ((299.0, 900.0), 180.0, 3.0, 180.0),
        ((299.0, 900.0), 179.0, 3.0, None),
        ((299.0, 299.0), 180.0, 3.0, None),
        ((300.0, 900.0), 60.0, 2.9, None),
    ],
    ids=[
        "300 requests are enough", "fewer are not", "a window begun before the counts",
        "neither has enough", "too few scrapes",
    ],
)  # fmt: skip
def test_the_shortest_window_with_enough_requests_testifies(
    offered: tuple[float, float], usable: float, scrapes: float, want: float | None
) -> None:
    windows = [
        window(s, offered=n, met=n, scrapes=scrapes)
        for s, n in zip((60.0, 180.0), offered, strict=True)
    ]
    found = weigh(windows, usable, 0.95, 0.99, SETTINGS)
    assert (None if found is None else found.window.seconds) == want


@pytest.mark.parametrize("unknown", ["offered", "met"])
def test_a_window_of_which_a_count_is_not_known_is_passed_over(unknown: str) -> None:
    lacking: dict[str, Any] = {unknown: Unknown("x")}
    windows = [window(60.0, **lacking), window(180.0, rate=2.0)]
    found = weigh(windows, 1e9, 0.95, 0.99, SETTINGS)
    assert found is not None
    assert (found.window.seconds, found.offered, found.met) == (180.0, 360.0, 360.0)
    assert found.below == posterior_below(360.0, 360.0, 0.95, 0.99)


@pytest.mark.parametrize(("requests", "tells"), [(30.0, True), (29.0, False)])
def test_ten_minutes_tell_something_with_thirty_requests(requests: float, tells: bool) -> None:
    found = weigh([window(600.0, offered=requests, met=0.0)], 1e9, 0.95, 0.99, SETTINGS)
    assert (found is not None) is tells


def test_requests_that_no_instance_helps_are_in_neither_count() -> None:
    """3.9 % of them, and all others met the target."""
    windows = [window(600.0, offered=1000.0, met=961.0, infeasible=39.0)]
    found = weigh(windows, 1e9, 0.99, 0.99, SETTINGS)
    assert found is not None
    assert (found.attainment, found.offered) == (1.0, 961.0)
    assert hopeless(windows) == pytest.approx(0.039)
    assert hopeless([window(infeasible=Unknown("x"))]) == 0.0


def test_a_prediction_is_worth_twenty_requests() -> None:
    assert posterior_below(10, 9, 0.95, 0.9) == pytest.approx(beta_cdf(9 + 18, 1 + 2, 0.95))


@pytest.mark.parametrize(("sure", "taken"), [(0.0, 0.02), (1.0, 0.998)])
def test_no_prediction_is_taken_as_sure(sure: float, taken: float) -> None:
    assert posterior_below(5, 4, 0.5, sure) == posterior_below(5, 4, 0.5, taken)
    for less_sure in (0.03, 0.997):
        assert posterior_below(5, 4, 0.5, sure) != posterior_below(5, 4, 0.5, less_sure)
