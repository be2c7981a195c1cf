"""Growth that does not help is noticed, undone, and not repeated."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.ratio_values import window

from pdserve.ratio.efficacy import (
    give_up,
    is_useless,
    judge,
    tried,
    undone,
    useless_role,
)
from pdserve.ratio.evidence import Evidence
from pdserve.ratio.types import Counts, LoopMemory, Trial

TRIAL = Trial("decode", Counts(1, 2, 4), 1.0, offered=1000.0, met=900.0, rate=5.0)


def evidence(met: float, rate: float = 5.0, offered: float = 1000.0) -> Evidence:
    return Evidence(window(180.0), offered, met, 1.0, rate)


def after(*found: Evidence) -> LoopMemory:
    """Memory after a growth of decode before each evidence."""
    memory = LoopMemory()
    for seen in found:
        memory = judge(tried(memory, TRIAL), seen, 0.99)
    return memory


def test_two_growths_without_gain_are_useless_and_one_is_not() -> None:
    assert useless_role(after(evidence(905))) is None
    assert useless_role(after(evidence(905), evidence(910))) == "decode"


@pytest.mark.parametrize(
    "seen",
    [evidence(940), evidence(995), evidence(880, rate=7.0)],
    ids=["a significant gain", "the target is met", "more load: it proves nothing"],
)
def test_a_growth_is_not_counted_as_useless(seen: Evidence) -> None:
    assert after(seen).trials == ()
    assert useless_role(after(seen, evidence(905))) is None


def test_what_is_given_up_is_as_before_its_first_trial() -> None:
    memory = replace(after(evidence(905), evidence(910)), pressure_decode=2.0)
    assert undone(memory, "decode", Counts(1, 2, 7)) == Counts(1, 2, 4)
    assert undone(memory, "decode", Counts(2, 2, 7)) == Counts(2, 2, 7), "other groups since"
    left = give_up(memory, "decode", evidence(905))
    assert (left.trials, left.pressure_decode) == ((), 1.0)
    assert is_useless(left, "decode")
    assert not is_useless(left, "prefill")


@pytest.mark.parametrize(
    ("seen", "useless"),
    [
        (evidence(905), True),
        (evidence(890), True),
        (evidence(800), False),
        (evidence(905, rate=6.5), False),
        (evidence(905, rate=3.0), False),
        (evidence(995), False),
    ],
    ids=["the same", "about the same", "far more misses", "more load", "less load", "target met"],
)
def test_it_is_tried_again_when_load_or_misses_are_others(seen: Evidence, useless: bool) -> None:
    left = give_up(after(evidence(905), evidence(910)), "decode", evidence(905))
    assert is_useless(judge(left, seen, 0.99), "decode") is useless
