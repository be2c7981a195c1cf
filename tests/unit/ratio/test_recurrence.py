"""Levels of the load, and the steps that are expected because they came before."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from tests.support.ratio_values import decision_input, sample, window

from pdserve.ratio.decide import decide
from pdserve.ratio.records import from_json, to_json
from pdserve.ratio.recurrence import ahead, expected, observe
from pdserve.ratio.types import Levels, LoadLevel, LoopMemory, LoopSettings

SETTINGS = LoopSettings()
LEAD = 15.0 + SETTINGS.fast_period + SETTINGS.cold_start


def seen(*parts: tuple[float, float], every: float = 5.0) -> tuple[Levels, float]:
    """Levels after parts of (rate, seconds), read as the loop does: over the last minute."""
    edges = list(itertools.accumulate((seconds for _, seconds in parts), initial=0.0))
    found, now = Levels(), 60.0
    while now <= edges[-1]:
        minute = sum(
            rate * max(min(now, end) - max(now - 60.0, start), 0.0)
            for (rate, _), (start, end) in zip(parts, itertools.pairwise(edges), strict=True)
        )
        found = observe(found, now, minute / 60.0, 60.0)
        now += every
    return found, now - every


def test_a_level_that_came_back_is_expected_to_end_as_it_did_before() -> None:
    levels, now = seen((12, 900), (28, 900), (12, 600))
    step = expected(levels)
    assert step is not None
    assert step.rate == pytest.approx(28.0, rel=0.02)
    assert step.at == pytest.approx(2700.0, abs=60.0)
    early = step.at - step.early - LEAD
    assert ahead(levels, early - 1.0, SETTINGS, 15.0) is None
    assert ahead(levels, early + 1.0, SETTINGS, 15.0) == step.rate
    assert ahead(levels, step.at + step.early + 1.0, SETTINGS, 15.0) is None, "overdue: given up"
    assert now < early


NONE = {
    "one level": [(12, 1800)],
    "first time up": [(12, 900), (28, 900)],
    "another level than before": [(12, 900), (28, 900), (18, 600)],
    "came back from below": [(28, 900), (12, 900), (28, 600)],
    "a drift there and back": [(10 + k, 60) for k in range(18)] + [(28 - k, 60) for k in range(18)],
}


@pytest.mark.parametrize("parts", NONE.values(), ids=NONE)
def test_nothing_is_expected_of(parts: list[tuple[float, float]]) -> None:
    assert expected(seen(*parts)[0]) is None


def test_what_costs_more_to_prepare_for_than_it_lasts_is_left_alone() -> None:
    levels, _ = seen((12, 1140), (36, 180), (12, 1000))
    step = expected(levels)
    assert step is not None
    assert ahead(levels, step.at, SETTINGS, 15.0) is None


def test_an_expectation_that_failed_is_not_acted_on_until_one_came_true() -> None:
    wave = [(12, 900), (28, 900), (12, 1500), (28, 900), (12, 1400)]
    failed, now = seen(*wave)
    assert (failed.proved, failed.failed) == (0, 1), "it lasted 1,500 s and not 900 s"
    step = expected(failed)
    assert step is not None
    assert ahead(failed, step.at, SETTINGS, 15.0) is None
    assert now < step.at
    again, _ = seen(*wave[:4], (12, 1500), (28, 200))
    assert (again.proved, again.failed) == (0, 0)


def test_one_that_came_true_is_dated_more_closely() -> None:
    once, _ = seen((12, 900), (28, 900), (12, 200))
    twice, _ = seen((12, 900), (28, 900), (12, 900), (28, 900), (12, 200))
    first, second = expected(once), expected(twice)
    assert first is not None
    assert second is not None
    assert twice.proved == 1
    assert second.early < first.early


def test_a_gap_in_the_measurements_forgets_all() -> None:
    levels, now = seen((12, 900), (28, 900), (12, 600))
    assert expected(observe(levels, now + 300.0, 12.0, 60.0)) is None


def test_the_loop_grows_before_the_step_and_memory_is_kept_in_records() -> None:
    now = 5000.0
    levels = Levels(
        (LoadLevel(now - 2740.0, 4.0), LoadLevel(now - 1840.0, 9.0), LoadLevel(now - 940.0, 4.0)),
        ((now - 10.0, 4.0),),
    )
    steady = tuple(window(s, 4.0) for s in (60.0, 180.0, 600.0))
    plain = decision_input(sample=sample(steady, at=now), memory=LoopMemory())
    warned = replace(plain, memory=replace(plain.memory, levels=levels))
    assert from_json(LoopMemory, to_json(warned.memory)) == warned.memory
    rates = [float(dict(decide(inp).inputs)["rateAhead"]) for inp in (plain, warned)]
    assert rates[0] < 5.0
    assert rates[1] == pytest.approx(9.0)
