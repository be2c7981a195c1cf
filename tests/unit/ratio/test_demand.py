"""Reading the offered load from growing windows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.ratio_values import prefill_window, sample, window

from pdserve.ratio.demand import covered, estimate_demand, estimate_rate, expected_demand
from pdserve.ratio.types import ExpectedTraffic, LoopSettings, RequestWindow, Unknown

SETTINGS = LoopSettings()
EXPECTED = ExpectedTraffic(2000.0, 300.0, 12.0, prefix_hit=0.4)


def counts(*offered: float) -> list[RequestWindow]:
    spans = (60.0, 180.0, 600.0)
    return [window(s, n / s) for s, n in zip(spans, offered, strict=True)]


def test_a_slow_steady_load_is_read_from_the_longest_window() -> None:
    found = estimate_rate(counts(36, 90, 300), SETTINGS)
    assert found is not None
    assert found.now == pytest.approx(0.5)


def test_a_step_is_read_from_the_shortest_window() -> None:
    found = estimate_rate(counts(90, 110, 160), SETTINGS)
    assert found is not None
    assert found.now == pytest.approx(1.5)


def test_a_reduction_must_serve_the_highest_recent_rate() -> None:
    found = estimate_rate(counts(60, 600, 2600), SETTINGS)
    assert found is not None
    assert found.now == pytest.approx(1.0)
    assert found.high > 600 / 180


def test_a_steady_rise_is_carried_forward_with_a_cap_and_a_step_is_not() -> None:
    rising = estimate_rate(counts(600, 1600, 3800), SETTINGS)
    assert rising is not None
    assert rising.now < rising.ahead <= 1.25 * rising.now
    stepped = estimate_rate(counts(600, 800, 1640), SETTINGS)
    assert stepped is not None
    assert stepped.ahead == stepped.now


def test_no_count_in_the_shortest_window_is_no_estimate() -> None:
    assert estimate_rate([window(offered=Unknown("NaN")), window(180.0)], SETTINGS) is None
    assert estimate_rate([], SETTINGS) is None


def test_no_requests_is_rate_zero() -> None:
    found = estimate_rate(counts(0, 0, 0), SETTINGS)
    assert found is not None
    assert (found.now, found.ahead, found.high) == (0.0, 0.0, 0.0)


def test_windows_that_reach_back_before_the_first_scrape_are_left_out() -> None:
    short, middle, long = window(60.0), window(180.0), window(600.0, scrapes=40.0)
    assert covered([short, middle, long]) == (short, middle)
    assert covered([replace(short, scrapes=Unknown("x")), middle])[0].scrapes == Unknown("x")
    assert covered([]) == ()


def test_token_means_come_from_the_shortest_window_with_enough_requests() -> None:
    windows = (
        window(60.0, rate=0.2, prompt=9000.0),
        window(180.0, rate=0.5, prompt=1000.0),
        window(600.0, rate=0.5, prompt=500.0),
    )
    found = estimate_demand(sample(windows), None, 0.5)
    assert found is not None
    assert found.prompt_tokens == pytest.approx(1000.0)


def test_cached_tokens_are_not_computed() -> None:
    base = window()
    hit = replace(base, cached_tokens=base.prompt_tokens * 0.4)  # type: ignore[operator]
    found = estimate_demand(sample((hit,)), None, 4.0)
    assert found is not None
    assert found.uncached_tokens == pytest.approx(900.0)


def test_spread_of_prompt_lengths_comes_from_prefill() -> None:
    wide = prefill_window(requests=100.0, tokens=100 * 1000.0, tokens_squared=100 * 3e6)
    found = estimate_demand(sample(prefill=wide), None, 4.0)
    assert found is not None
    assert found.uncached_squared == pytest.approx(3.0 * found.uncached_tokens**2)


def test_expected_lengths_until_something_completed() -> None:
    nothing = sample((window(completed=0.0),))
    assert estimate_demand(nothing, None, 2.0) is None
    found = estimate_demand(nothing, EXPECTED, 2.0)
    assert found is not None
    assert (found.rate, found.prompt_tokens, found.output_tokens) == (2.0, 2000.0, 300.0)
    assert found.uncached_tokens == pytest.approx(1200.0)
    assert expected_demand(EXPECTED).rate == 12.0
