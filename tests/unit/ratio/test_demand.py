"""Reading the offered load from growing windows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.ratio_values import prefill_window, sample, window

from pdserve.ratio.demand import covered, estimate_demand, estimate_rate, expected_demand
from pdserve.ratio.types import (
    Demand,
    ExpectedTraffic,
    LoopSettings,
    PrefillWindow,
    RequestWindow,
    Unknown,
)

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
    assert covered([unknown := replace(short, scrapes=Unknown("x")), middle]) == (unknown,)
    assert covered([]) == ()


@pytest.mark.parametrize(("scrapes", "kept"), [(40.0, True), (39.9, False), (Unknown("x"), False)])
def test_a_window_is_filled_with_four_fifths_of_the_shortest_ones_scrapes(
    scrapes: float | Unknown, kept: bool
) -> None:
    windows = (window(60.0, scrapes=30.0), window(100.0, scrapes=scrapes))
    assert (len(covered(windows)) == 2) is kept


# --- how far back the rate is read ----------------------------------------------------------------


def offered(*counted: tuple[float, float]) -> list[RequestWindow]:
    """Windows of so many seconds with so many requests offered."""
    return [window(seconds, offered=count) for seconds, count in counted]


READ = [
    ("100 requests are enough", [(60, 100), (180, 330), (600, 1100)], 100 / 60),
    ("99 are not, 330 are", [(60, 99), (180, 330), (600, 1300)], 330 / 180),
    ("2.5 standard errors more before: another load", [(60, 36), (180, 144)], 0.6),
    ("fewer errors: the same load", [(60, 36), (180, 143)], 143 / 180),
    ("2.5 standard errors less before: another load", [(60, 36), (180, 76)], 0.6),
    ("fewer errors less: the same load", [(60, 36), (180, 77)], 77 / 180),
    ("nothing now, much before: it ended", [(60, 0), (180, 7)], 0.0),
    ("nothing now, little before: it goes on", [(60, 0), (180, 6)], 6 / 180),
    ("a longer window with fewer requests: none before", [(60, 60), (180, 10)], 1.0),
    ("six now, none before: it began", [(60, 6), (180, 6)], 0.1),
    ("five now, none before: by chance", [(60, 5), (180, 5)], 5 / 180),
    ("the second window agrees, the third does not", [(60, 30), (180, 90), (600, 900)], 0.5),
    ("the second does not: the third is not asked", [(60, 36), (180, 144), (600, 370)], 0.6),
]


@pytest.mark.parametrize(("counted", "want"), [r[1:] for r in READ], ids=[r[0] for r in READ])
def test_the_rate_is_read_as_far_back_as_the_load_was_the_same(
    counted: list[tuple[float, float]], want: float
) -> None:
    found = estimate_rate(offered(*counted), SETTINGS)
    assert found is not None
    assert found.now == pytest.approx(want)


def test_a_longer_window_without_a_count_is_passed_over() -> None:
    windows = offered((60, 30), (180, 90), (600, 290))
    found = estimate_rate(
        [windows[0], replace(windows[1], offered=Unknown("x")), windows[2]], SETTINGS
    )
    assert found is not None
    assert found.now == pytest.approx(290 / 600)


HIGH = [
    ("the busiest of the recent ones, with 1.64 errors", [(60, 64), (180, 900), (600, 9000)],
     {}, (900 + 1.64 * 30) / 180),
    ("one as long as a surplus must last is recent", [(60, 64), (300, 900)],
     {}, (900 + 1.64 * 30) / 300),
    ("so is one as long as the shortest", [(600, 900), (900, 9000)],
     {"window": 600.0}, (900 + 1.64 * 30) / 600),
    ("no requests at all", [(60, 0), (180, 0)], {}, 0.0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("counted", "settings", "want"), [r[1:] for r in HIGH], ids=[r[0] for r in HIGH]
)
def test_the_upper_estimate_covers_what_was_offered_lately(
    counted: list[tuple[float, float]], settings: dict[str, float], want: float
) -> None:
    found = estimate_rate(offered(*counted), replace(SETTINGS, **settings))
    assert found is not None
    assert found.high == pytest.approx(want)


def test_the_upper_estimate_is_at_least_the_estimate() -> None:
    """The rate may be read from a window that is too long to count as recent."""
    found = estimate_rate(offered((60, 3), (600, 60)), SETTINGS)
    assert found is not None
    assert (found.now, found.high) == (pytest.approx(0.1), pytest.approx(0.1))


CLIMB = 1 / 2048
"""Requests/s per second of the steady climb below."""
AHEAD = [
    ("one error above the time before, half an error above the time before that",
     [(64, 64), (128, 120), (256, 224)], 90 * CLIMB),
    ("less than one error", [(64, 64), (128, 121), (256, 224)], 0.0),
    ("less than half an error", [(64, 64), (128, 120), (256, 225)], 0.0),
    ("the slower of the two climbs counts, here the later one",
     [(64, 64), (128, 120), (256, 120)], 90 / 512),
    ("none long before", [(64, 64), (128, 80), (256, 80)], 90 / 512),
    ("a window longer still is not asked",
     [(64, 64), (128, 120), (256, 224), (512, 9000)], 90 * CLIMB),
    ("three now, none before", [(64, 3), (128, 3), (256, 3)], 0.0),
    ("two windows are no proof", [(64, 64), (128, 120)], 0.0),
    ("nothing before", [(64, 64), (128, 64), (256, 64)], 0.0),
    ("a quarter at the most", [(64, 640), (128, 960), (256, 960)], 2.5),
]  # fmt: skip


@pytest.mark.parametrize(("counted", "want"), [r[1:] for r in AHEAD], ids=[r[0] for r in AHEAD])
def test_a_steady_climb_is_carried_forward_over_the_dead_time(
    counted: list[tuple[float, float]], want: float
) -> None:
    """Half of the shortest window and the cold start: 30 s + 60 s."""
    found = estimate_rate(offered(*counted), SETTINGS)
    assert found is not None
    assert found.ahead - found.now == pytest.approx(want)


@pytest.mark.parametrize(
    ("counted", "want"),
    [
        ([(64, 64), (128, 114)], True),
        ([(64, 64), (128, 115)], False),
        ([(64, 64), (128, 64)], True),
        ([(64, 64)], False),
        ([(64, 0), (128, 0)], False),
    ],
    ids=["1.76 errors", "1.63 errors", "none before", "one window", "no load"],
)
def test_a_load_rises_when_it_is_surely_above_the_time_before(
    counted: list[tuple[float, float]], want: bool
) -> None:
    found = estimate_rate(offered(*counted), SETTINGS)
    assert found is not None
    assert found.rising is want


# --- what a request looks like --------------------------------------------------------------------


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


def lengths(*completed: float, **over: object) -> float | None:
    """The prompt length read from windows that completed so many; each has its own length.

    `over` changes the shortest one.
    """
    windows = [
        window(60.0 * k, completed=n, prompt_tokens=n * 1000.0 * k, output_tokens=n * 100.0)
        for k, n in enumerate(completed, 1)
    ]
    windows[0] = replace(windows[0], **over)  # type: ignore[arg-type]
    found = estimate_demand(sample(tuple(windows)), None, 1.0)
    return None if found is None else found.prompt_tokens


UNKNOWN = Unknown("away")
LENGTHS: list[tuple[str, tuple[float, ...], dict[str, object], float | None]] = [
    ("30 are enough", (30, 90, 300), {}, 1000.0),
    ("29 are not", (29, 90, 300), {}, 2000.0),
    ("none has enough: the longest", (1, 5, 29), {}, 3000.0),
    ("the longest that completed one", (3, 1, 0.9), {}, 2000.0),
    ("none completed one", (0.9, 0.9, 0.9), {}, None),
    ("completed not known", (40, 50, 60), {"completed": UNKNOWN}, 2000.0),
    ("prompts not known", (40, 50, 60), {"prompt_tokens": UNKNOWN}, 2000.0),
    ("outputs not known", (40, 50, 60), {"output_tokens": UNKNOWN}, 2000.0),
    ("completed not known, not enough in the others", (3, 4), {"completed": UNKNOWN}, 2000.0),
    ("completed not known in the only one", (40,), {"completed": UNKNOWN}, None),
    ("nothing known of the only one", (40,), {"output_tokens": UNKNOWN}, None),
]


@pytest.mark.parametrize(
    ("completed", "over", "want"), [r[1:] for r in LENGTHS], ids=[r[0] for r in LENGTHS]
)
def test_lengths_are_those_of_the_shortest_window_that_tells_enough(
    completed: tuple[float, ...], over: dict[str, object], want: float | None
) -> None:
    assert lengths(*completed, **over) == want


def demand_of(**over: object) -> Demand:
    base = window(completed=100.0, prompt_tokens=1000.0 * 100, output_tokens=300.0 * 100)
    found = estimate_demand(sample((replace(base, **over),)), None, 4.0)  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("over", "uncached"),
    [
        ({"cached_tokens": 25_000.0}, 750.0),
        ({"cached_tokens": 0.0}, 1000.0),
        ({"cached_tokens": 120_000.0}, 0.0),
        ({"cached_tokens": UNKNOWN}, 1000.0),
        ({"cached_tokens": 10.0, "prompt_tokens": 0.0}, 0.0),
        ({"cached_tokens": 1.0, "prompt_tokens": 1.0}, 0.0),
    ],
    ids=["a quarter", "none", "more than asked", "not known", "no prompt", "one token"],
)
def test_prefill_computes_what_the_cache_does_not_hold(
    over: dict[str, object], uncached: float
) -> None:
    found = demand_of(**over)
    assert found.uncached_tokens == pytest.approx(uncached)
    assert found.uncached_squared == pytest.approx(uncached**2), "prompts of one length"


@pytest.mark.parametrize(("tokens", "want"), [(30_000.0, 300.0), (100.0, 1.0), (50.0, 1.0)])
def test_an_answer_has_at_least_one_token(tokens: float, want: float) -> None:
    assert demand_of(output_tokens=tokens).output_tokens == want


SPREADS: list[tuple[str, dict[str, object], float]] = [
    ("prompts of one length", {}, 1.0),
    ("as measured", {"tokens_squared": 200 * 1000.0**2}, 2.0),
    ("never below one", {"tokens_squared": 50 * 1000.0**2}, 1.0),
    ("ten at the most", {"tokens_squared": 2000 * 1000.0**2}, 10.0),
    ("one request is enough",
     {"requests": 1.0, "tokens": 1000.0, "tokens_squared": 2 * 1000.0**2}, 2.0),
    ("less than one is not",
     {"requests": 0.9, "tokens": 1000.0, "tokens_squared": 2 * 1000.0**2}, 1.25),
    ("no tokens", {"tokens": 0.0}, 1.25),
    ("few tokens", {"requests": 1.0, "tokens": 0.5, "tokens_squared": 0.5}, 2.0),
    ("requests not known", {"requests": UNKNOWN}, 1.25),
    ("tokens not known", {"tokens": UNKNOWN}, 1.25),
    ("squares not known", {"tokens_squared": UNKNOWN}, 1.25),
]  # fmt: skip


@pytest.mark.parametrize(("over", "want"), [r[1:] for r in SPREADS], ids=[r[0] for r in SPREADS])
def test_the_spread_of_prompts_is_what_prefill_computed(
    over: dict[str, object], want: float
) -> None:
    seen: PrefillWindow = prefill_window(requests=100.0, prompt=1000.0)
    told = sample((window(),), prefill=replace(seen, **over))  # type: ignore[arg-type]
    found = estimate_demand(told, None, 4.0)
    assert found is not None
    assert found.uncached_squared / found.uncached_tokens**2 == pytest.approx(want)


def test_announced_prompts_are_taken_to_spread_by_a_quarter() -> None:
    found = expected_demand(ExpectedTraffic(2000.0, 0.5, 12.0, prefix_hit=0.4), 3.0)
    assert found == Demand(3.0, 2000.0, 1200.0, 1200.0**2 * 1.25, 1.0)
