"""First size, explain and presets."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from tests.support.ratio_values import BOUNDS, NPU, PROFILE, SLO, decision_input, sample

from pdserve.api.common import ProfilePreset
from pdserve.ratio.choose import CountLimits
from pdserve.ratio.decide import decide
from pdserve.ratio.explain import MEANING, describe, sentence
from pdserve.ratio.initial import initial_counts
from pdserve.ratio.presets import PRESETS, dilated, preset
from pdserve.ratio.types import (
    Bounds,
    BudgetLimit,
    Counts,
    ExpectedTraffic,
    Range,
    Reason,
)

LIMITS = CountLimits(BOUNDS, NPU, NPU)
EXPECTED = ExpectedTraffic(prompt_tokens=3000.0, output_tokens=60.0, requests_per_second=6.0)


def test_announced_traffic_sizes_the_scenario() -> None:
    sizing = initial_counts(LIMITS, SLO, EXPECTED, PROFILE)
    assert sizing.counts.total("prefill") > sizing.counts.total("decode")
    assert "6 requests/s of 3000 + 60 tokens" in sizing.message
    more = initial_counts(LIMITS, SLO, replace(EXPECTED, requests_per_second=12.0), PROFILE)
    assert LIMITS.devices(more.counts) > LIMITS.devices(sizing.counts)
    cached = initial_counts(LIMITS, SLO, replace(EXPECTED, prefix_hit=0.8), PROFILE)
    assert cached.counts.total("prefill") < sizing.counts.total("prefill")


@pytest.mark.parametrize(
    ("expected", "profile", "word"),
    [(None, PROFILE, "`expected` is not set"), (EXPECTED, None, "no performance profile")],
)
def test_nothing_known_starts_at_the_lower_bounds(expected, profile, word) -> None:  # type: ignore[no-untyped-def]
    sizing = initial_counts(LIMITS, SLO, expected, profile)
    assert sizing.counts == Counts(1, 1, 1)
    assert word in sizing.message


def test_a_scenario_that_may_go_to_zero_starts_with_one_group() -> None:
    may_be_none = replace(LIMITS, bounds=replace(BOUNDS, groups=Range(0, 4)))
    assert initial_counts(may_be_none, SLO, None, PROFILE).counts == Counts(1, 1, 1)


def test_all_that_the_bounds_allow_may_be_needed_from_the_start() -> None:
    tight = replace(LIMITS, bounds=Bounds(Range(1, 2), Range(1, 3), Range(1, 2)))
    heavy = replace(EXPECTED, prompt_tokens=1500.0, output_tokens=10.0, requests_per_second=44.0)
    sizing = initial_counts(tight, SLO, heavy, PROFILE)
    assert (sizing.counts.groups, sizing.counts.prefill) == (2, 3)
    assert "nothing within the limits" not in sizing.message


def test_limits_hold_from_the_start() -> None:
    poor = replace(LIMITS, budget=(BudgetLimit(NPU.resource, 24),))
    sizing = initial_counts(poor, SLO, replace(EXPECTED, requests_per_second=60.0), PROFILE)
    assert poor.devices(sizing.counts) <= 24
    assert "nothing within the limits reaches 95.0%" in sizing.message


def test_fixed_counts_are_taken_as_they_are() -> None:
    assert initial_counts(LIMITS, SLO, EXPECTED, PROFILE, Counts(2, 3, 4)).counts == Counts(2, 3, 4)


def test_every_reason_has_a_meaning() -> None:
    assert set(MEANING) == set(Reason)
    for reason in Reason:
        assert len(sentence(reason)) > 10


def test_describe_says_what_why_and_the_numbers() -> None:
    text = describe(decide(decision_input(sample=sample(attainment=0.5))))
    assert text.startswith("Applied PrefillShortage: 1x(1P3D) -> ")
    assert "current: 1x(1P3D), 32 devices, predicted" in text
    assert "chosen: " in text
    assert "attainment=0.5000" in text
    held = describe(decide(decision_input()))
    assert held.startswith("Held ConfirmingSurplus: 1x(1P3D)\n")


def test_the_api_names_every_preset() -> None:
    assert set(get_args(ProfilePreset)) == set(PRESETS)


def test_presets() -> None:
    with pytest.raises(KeyError, match="want one of llama2-70b-a100x8, llama2-70b-h100x8"):
        preset("tpu", 1, 1)
    slow = dilated(PROFILE, 5.0)
    assert slow.prefill.batch_seconds(2, 1000, 1e6) == pytest.approx(
        5 * PROFILE.prefill.batch_seconds(2, 1000, 1e6)
    )
    assert slow.decode.step_seconds(8, 900) == pytest.approx(
        5 * PROFILE.decode.step_seconds(8, 900)
    )
    # Splitwise, H100, prompt 512 alone: 0.054 s measured; one token at batch 1: 0.030 s.
    assert PROFILE.prefill.batch_seconds(1, 512, 512.0**2) == pytest.approx(0.054, rel=0.1)
    assert PROFILE.decode.step_seconds(1, 512) == pytest.approx(0.030, rel=0.05)
