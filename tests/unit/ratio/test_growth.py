"""What growth takes from the other role, and when it is not worth it; how pressure fades."""

from __future__ import annotations

import pytest
from tests.support.ratio_values import decision_input, new, sample, window

from pdserve.ratio.decide import decide
from pdserve.ratio.memory import observe_readiness
from pdserve.ratio.types import (
    Bounds,
    Counts,
    DecisionInput,
    LoopMemory,
    LoopSettings,
    Range,
    Reason,
)

SPANS = (60.0, 180.0, 600.0)


def load(
    current: Counts,
    rate: float,
    prompt: float,
    output: float,
    latest: float = 1.0,
    **over: object,
) -> DecisionInput:
    """Windows at one rate, the shortest one `latest` times as busy."""
    windows = tuple(
        window(s, rate * (latest if s == SPANS[0] else 1.0), prompt=prompt, output=output)
        for s in SPANS
    )
    return decision_input(current, sample=sample(windows), memory=new(current), **over)


@pytest.mark.parametrize(
    ("inp", "want"),
    [
        (load(Counts(1, 2, 5), 6.0, 4000.0, 40.0), Counts(1, 3, 4)),
        (load(Counts(1, 2, 5), 4.0, 4000.0, 20.0, latest=1.3), Counts(1, 3, 5)),
        (load(Counts(1, 2, 5), 5.0, 4000.0, 215.0), Counts(1, 3, 5)),
    ],
    ids=[
        "what stays holds more than this load: it gives",
        "the load rises: how far is not known, it keeps",
        "what stays would hold this load but no margin: it keeps",
    ],
)
def test_a_role_gives_only_what_it_does_not_need(inp: DecisionInput, want: Counts) -> None:
    got = decide(inp)
    assert (got.outcome, got.reason, got.to) == ("Applied", Reason.MODEL_FLOOR, want)


@pytest.mark.parametrize(
    ("rate", "prompt", "output", "outcome", "reason"),
    [
        (16.0, 1500.0, 200.0, "Applied", Reason.MODEL_FLOOR),
        (8.0, 2500.0, 400.0, "Blocked", Reason.AT_MAXIMUM),
    ],
    ids=["1.0 % better", "0.8 % better"],
)
def test_a_change_that_helps_too_little_is_not_made(
    rate: float, prompt: float, output: float, outcome: str, reason: Reason
) -> None:
    tight = Bounds(Range(1, 1), Range(1, 3), Range(1, 5))
    got = decide(load(Counts(1, 2, 5), rate, prompt, output, bounds=tight))
    assert (got.outcome, got.reason) == (outcome, reason)


FADE = LoopSettings().pressure_fade


@pytest.mark.parametrize(
    ("at", "want"),
    [
        (None, (3.0, 2.0)),
        (5000.0, (3.0, 2.0)),
        (5000.0 - FADE, (1.0 + 2.0 / 2.718281828, 1.0 + 1.0 / 2.718281828)),
        (5000.0 - 100 * FADE, (1.0, 1.0)),
        (6000.0, (3.0, 2.0)),
    ],
    ids=["never seen", "just now", "one fading time", "long ago", "the clock was set back"],
)
def test_proven_pressure_fades(at: float | None, want: tuple[float, float]) -> None:
    before = LoopMemory(pressure_prefill=3.0, pressure_decode=2.0, pressure_at=at)
    after = observe_readiness(decision_input(memory=before))
    assert (after.pressure_prefill, after.pressure_decode) == pytest.approx(want)
    assert after.pressure_at == 5000.0
