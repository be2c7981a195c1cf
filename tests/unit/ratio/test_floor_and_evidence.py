"""What the model asks for and what measurements prove, where they differ."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.ratio_values import PROFILE, decision_input, new, sample, window
from tests.unit.ratio.test_decide import failing

from pdserve.ratio.decide import decide
from pdserve.ratio.presets import dilated
from pdserve.ratio.types import Bounds, PastChange, Range, Reason


@pytest.mark.invariant(3)
def test_surely_healthy_evidence_is_not_contradicted_by_the_model() -> None:
    """It predicts 54 %, and 100 % of 4,800 requests met the target."""
    slow = dilated(PROFILE, 1.2)
    inp = decision_input(sample=sample(rate=8.0, at=5000.0), profile=slow)
    got = decide(inp)
    assert got.outcome == "Held", got.message
    assert got.memory.pressure_decode < 1.0
    assert decide(replace(inp, memory=new())).reason is Reason.MODEL_FLOOR, "not measured yet"


def test_one_request_of_one_missed_proves_nothing() -> None:
    windows = tuple(window(s, offered=1.0, met=0.0, ttft_met=0.0) for s in (60.0, 180.0, 600.0))
    assert decide(decision_input(sample=sample(windows))).outcome == "Held"
    few = tuple(window(s, 29 / s, 0.0) for s in (60.0, 180.0, 600.0))
    assert decide(decision_input(sample=sample(few))).outcome == "Held"


def test_what_is_on_its_way_counts_and_the_floor_asks_for_the_rest() -> None:
    on_its_way = decision_input(sample=sample(rate=12.0), ready_decode=2, memory=new())
    got = decide(on_its_way)
    assert (got.outcome, got.reason) == ("Applied", Reason.MODEL_FLOOR)
    there = replace(on_its_way, current=got.to, memory=got.memory)
    assert decide(there).reason is Reason.IN_FLIGHT


def test_pressure_is_kept_only_with_a_change_that_is_applied() -> None:
    cases: tuple[dict[str, Any], ...] = (
        {"changes": (PastChange(4990.0),)},
        {"mode": "Advise"},
        {"bounds": Bounds(Range(1, 1), Range(1, 1), Range(1, 3))},
    )
    for over in cases:
        got = decide(failing(**over))
        assert got.outcome != "Applied"
        assert got.memory.pressure_prefill <= 1.0, got.reason
