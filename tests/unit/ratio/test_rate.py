"""Reading the offered load from growing windows: steady, drifting, stepping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.support.ratio_values import sample, window

from pdserve.ratio.rate import RateEstimate, arrivals, covered, estimate_rate
from pdserve.ratio.types import LoopSettings, RecentWindow, RequestWindow, ScenarioSample, Unknown

SETTINGS = LoopSettings(cold_start=60.0, fast_period=10.0)
SPANS = (60.0, 180.0, 600.0)
UNKNOWN = Unknown("away")


def counted(*counts: float, recent: float | None = None, lag: float = 0.0) -> ScenarioSample:
    """Windows in which so many requests arrived; `recent`: in the last 30 s."""
    windows = tuple(window(s, n / s, arrived=n) for s, n in zip(SPANS, counts, strict=False))
    newest = None if recent is None else RecentWindow(30.0, recent, 0.0, 0.0, 0.0, 0.0, 0.0)
    return sample(windows, recent=newest, lag=lag)


def read(*counts: float, recent: float | None = None, lag: float = 0.0) -> RateEstimate:
    found = estimate_rate(counted(*counts, recent=recent, lag=lag), SETTINGS)
    assert found is not None
    return found


def test_a_steady_load_is_read_from_the_longest_window() -> None:
    found = read(36, 90, 300)
    assert found.now == pytest.approx(0.5)
    assert (found.ahead, found.rising, found.falling) == (found.now, False, False)
    assert found.now < found.high < 1.1 * found.now


@pytest.mark.parametrize(
    ("counts", "want"),
    [((90, 110, 160), 1.5), ((1200, 3610, 12010), 20.0), ((0, 60, 260), 0.0)],
    ids=["up", "many requests: the noise is small", "it ended"],
)
def test_a_step_is_read_from_the_windows_since(counts: Sequence[float], want: float) -> None:
    assert read(*counts).now == pytest.approx(want, rel=0.1)


def test_the_newest_scrapes_show_a_step_before_the_shortest_window_does() -> None:
    """15 -> 30 a quarter of a minute ago."""
    blind = read(1125, 2925, 9225)
    seen = read(1125, 2925, 9225, recent=900.0)
    assert blind.now < 20.0
    assert seen.now == pytest.approx(30.0)
    assert seen.rising


def test_fewer_newest_scrapes_prove_nothing() -> None:
    """A missed scrape looks like them."""
    assert read(900, 2700, 9000, recent=0.0).now == pytest.approx(15.0)


def climbing(slope: float, at_end: float) -> tuple[float, ...]:
    return tuple(s * (at_end - slope * s / 2) for s in SPANS)


def test_a_load_that_climbs_is_carried_forward_over_the_dead_time() -> None:
    found = read(*climbing(0.01, 20.0), lag=30.0)
    assert found.now == pytest.approx(20.0, abs=0.2)
    assert found.ahead - found.now == pytest.approx(0.01 * (30.0 + 5.0 + 60.0), rel=0.05)
    assert found.rising


def test_a_load_that_falls_is_not_carried_forward() -> None:
    found = read(*climbing(-0.01, 20.0))
    assert 20.0 <= found.now < 21.5
    assert found.ahead == found.now
    assert found.falling
    assert not found.rising


def test_a_step_down_of_minutes_ago_is_no_fall_that_goes_on() -> None:
    """30 until 6 minutes ago, 15 since then."""
    found = read(900, 2700, 15 * 360 + 30 * 240)
    assert found.now >= 14.9


def test_the_forecast_has_a_cap() -> None:
    slow = replace(SETTINGS, cold_start=3000.0)
    found = estimate_rate(counted(*climbing(0.02, 20.0)), slow)
    assert found is not None
    assert found.ahead == pytest.approx(1.5 * found.now)


@pytest.mark.parametrize(
    ("over", "want"),
    [
        ({"arrived": 90.0, "offered": 70.0}, 90.0),
        ({"arrived": UNKNOWN, "offered": 70.0, "infeasible": 5.0}, 65.0),
        ({"arrived": 0.0, "offered": 70.0}, 70.0),
        ({"arrived": UNKNOWN, "offered": UNKNOWN}, None),
        ({"arrived": UNKNOWN, "offered": 3.0, "infeasible": 5.0}, 0.0),
    ],
    ids=["at arrival", "an older gateway", "a gateway that does not count them", "none", "bounded"],
)
def test_demand_is_what_arrives(over: dict[str, float | Unknown], want: float | None) -> None:
    assert arrivals(replace(window(), **over)) == want  # type: ignore[arg-type]


def test_no_count_in_the_shortest_window_is_no_estimate() -> None:
    unknown = (replace(window(), offered=UNKNOWN), window(180.0))
    assert estimate_rate(sample(unknown), SETTINGS) is None
    assert estimate_rate(sample(()), SETTINGS) is None


def test_no_requests_is_rate_zero() -> None:
    found = read(0, 0, 0)
    assert (found.now, found.ahead) == (0.0, 0.0)


def test_windows_that_reach_back_before_the_first_scrape_are_left_out() -> None:
    short, middle, long = window(60.0), window(180.0), window(600.0, scrapes=40.0)
    assert covered([short, middle, long]) == (short, middle)
    assert covered([unknown := replace(short, scrapes=UNKNOWN), middle]) == (unknown,)
    assert covered([]) == ()


@pytest.mark.parametrize(("scrapes", "kept"), [(40.0, True), (39.9, False), (UNKNOWN, False)])
def test_a_window_is_filled_with_four_fifths_of_the_shortest_ones_scrapes(
    scrapes: float | Unknown, kept: bool
) -> None:
    windows: tuple[RequestWindow, ...] = (
        window(60.0, scrapes=30.0), window(100.0, scrapes=scrapes)
    )  # fmt: skip
    assert (len(covered(windows)) == 2) is kept
