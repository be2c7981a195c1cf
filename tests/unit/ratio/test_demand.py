"""What a request looks like: prompts at arrival, answers as they end, what caches save."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.ratio_values import sample, window

from pdserve.ratio.demand import estimate_demand, expected_demand
from pdserve.ratio.rate import RateEstimate
from pdserve.ratio.types import (
    Demand,
    ExpectedTraffic,
    RecentWindow,
    RequestWindow,
    ScenarioSample,
    Unknown,
)

EXPECTED = ExpectedTraffic(2000.0, 300.0, 12.0, prefix_hit=0.4)
STEADY = RateEstimate(4.0, 4.0, 4.1, rising=False, falling=False)
UNKNOWN = Unknown("away")


def demand(seen: ScenarioSample, rate: RateEstimate = STEADY) -> Demand:
    found = estimate_demand(seen, None, rate)
    assert found is not None
    return found


def recent(**over: float) -> RecentWindow:
    """30 s in which prompts of 1,500 tokens came and answers of 200 ended."""
    values = RecentWindow(30.0, 400.0, 600_000.0, 400.0, 600_000.0, 400.0, 80_000.0)
    return replace(values, **over)


def test_prompts_are_counted_at_arrival_because_long_ones_do_not_complete() -> None:
    """12,035 tokens a prompt; those that completed had 8,111."""
    short = window(60.0, rate=4.0, prompt=8111.0, arrived=240.0, arrived_tokens=240 * 12_035.0)
    assert demand(sample((short,))).prompt_tokens == pytest.approx(12_035.0)
    older = replace(short, arrived=UNKNOWN, arrived_tokens=UNKNOWN)
    assert demand(sample((older,))).prompt_tokens == pytest.approx(8111.0)


def test_a_mean_is_of_the_longest_window_that_does_not_contradict_the_shorter() -> None:
    def windows(*prompts: float) -> tuple[RequestWindow, ...]:
        return tuple(
            window(s, rate=4.0, prompt=p)
            for s, p in zip((60.0, 180.0, 600.0), prompts, strict=True)
        )

    assert demand(sample(windows(1500, 1510, 1490))).prompt_tokens == pytest.approx(1490)
    assert demand(sample(windows(3000, 1500, 1200))).prompt_tokens == pytest.approx(3000)


def test_a_window_with_few_requests_is_not_read_by_itself() -> None:
    few = (window(60.0, rate=0.2, prompt=9000.0), window(180.0, rate=0.5, prompt=1000.0))
    assert demand(sample(few)).prompt_tokens == pytest.approx(1000.0)
    alone = (window(60.0, rate=0.2, prompt=9000.0),)
    assert demand(sample(alone)).prompt_tokens == pytest.approx(9000.0)


def test_the_newest_scrapes_raise_a_mean_at_once_but_not_above_twice() -> None:
    longer = sample((window(),), recent=recent(arrived_tokens=400 * 2500.0))
    assert demand(longer).prompt_tokens == pytest.approx(2500.0)
    wild = sample((window(),), recent=recent(arrived_tokens=400 * 25_000.0))
    assert demand(wild).prompt_tokens == pytest.approx(3000.0)
    few = sample((window(),), recent=recent(arrived=50.0, arrived_tokens=50 * 2500.0))
    assert demand(few).prompt_tokens == pytest.approx(1500.0)


def test_prefixes_that_are_cached_no_more_show_in_what_prefills_compute() -> None:
    base = window()
    assert isinstance(base.prompt_tokens, float)
    hits = replace(base, cached_tokens=base.prompt_tokens * 0.7)
    before = sample((hits,), recent=recent(prefill_tokens=400 * 450.0))
    assert demand(before).uncached_tokens == pytest.approx(450.0)
    after = sample((hits,), recent=recent(prefill_tokens=400 * 1500.0))
    assert demand(after).uncached_tokens == pytest.approx(900.0), "twice as much at once"


def test_answers_that_get_longer_show_before_they_end() -> None:
    """Decodes make 400 tokens for each answer that ends, where answers had 200."""
    longer = sample((window(),), recent=recent(decode_tokens=400 * 400.0))
    assert demand(longer).output_tokens == pytest.approx(400.0)
    rising = replace(STEADY, rising=True)
    assert demand(longer, rising).output_tokens == pytest.approx(200.0), "more streams, not longer"


def test_expected_lengths_until_something_completed() -> None:
    nothing = sample((window(completed=0.0, prompt_tokens=0.0, output_tokens=0.0),))
    assert estimate_demand(nothing, None, STEADY) is None
    found = estimate_demand(nothing, EXPECTED, STEADY)
    assert found is not None
    assert (found.rate, found.prompt_tokens, found.output_tokens) == (4.0, 2000.0, 300.0)
    assert found.uncached_tokens == pytest.approx(1200.0)
    assert expected_demand(EXPECTED).rate == 12.0
    assert expected_demand(ExpectedTraffic(2000.0, 0.5, 12.0, 0.4), 3.0) == Demand(
        3.0, 2000.0, 1200.0, 1200.0**2 * 1.25, 1.0
    )


@pytest.mark.parametrize("unknown", ["completed", "output_tokens"])
def test_a_window_that_does_not_tell_is_passed_over(unknown: str) -> None:
    silent = replace(window(60.0, output=900.0), **{unknown: UNKNOWN})  # type: ignore[arg-type]
    assert demand(sample((silent, window(180.0)))).output_tokens == pytest.approx(200.0)


@pytest.mark.parametrize(
    ("over", "uncached"),
    [
        ({"cached_tokens": 25_000.0}, 750.0),
        ({"cached_tokens": 0.0}, 1000.0),
        ({"cached_tokens": 120_000.0}, 0.0),
        ({"cached_tokens": UNKNOWN}, 1000.0),
    ],
    ids=["a quarter", "none", "more than asked", "not known"],
)
def test_prefill_computes_what_the_cache_does_not_hold(
    over: dict[str, object], uncached: float
) -> None:
    base = window(completed=100.0, prompt_tokens=1000.0 * 100, output_tokens=300.0 * 100)
    found = demand(sample((replace(base, **over),)))  # type: ignore[arg-type]
    assert found.uncached_tokens == pytest.approx(uncached)
    assert found.uncached_squared == pytest.approx(1.25 * uncached**2)


def test_the_spread_of_prompts_is_the_profiles() -> None:
    found = estimate_demand(sample(), None, STEADY, spread=2.0)
    assert found is not None
    assert found.uncached_squared == pytest.approx(2.0 * found.uncached_tokens**2)
