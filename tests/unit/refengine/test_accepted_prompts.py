"""A prompt that would make one late which was accepted before is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import cast

import pytest

from pdserve.refengine.runtime.estimates import Estimates
from pdserve.refengine.runtime.forecast import least_left
from pdserve.refengine.runtime.pacing import Pacer, load_profile
from pdserve.refengine.runtime.sequence import Sequence

NOW = 100.0


@dataclass
class Asked:
    prompt_tokens: int
    budget: float | None


@dataclass
class Waits:
    """A sequence, as far as the forecast reads it."""

    request: Asked
    accepted_at: float
    computed: int = 0
    prefilled: bool = False
    in_step: bool = False
    output: list[int] = field(default_factory=list)


def waits(
    budget: float | None, ago: float, *, in_step: bool = False, prefilled: bool = False
) -> Sequence:
    asked = Asked(100, budget)
    return cast(Sequence, Waits(asked, NOW - ago, prefilled=prefilled, in_step=in_step))


CASES = {
    "nothing waits": ([], math.inf),
    "one has 0.8 s of its second left": ([waits(1.0, 0.2)], 0.8),
    "the one with the least decides": ([waits(1.0, 0.2), waits(2.0, 1.7)], 0.3),
    "no deadline": ([waits(None, 5.0)], math.inf),
    "it is late whatever comes": ([waits(1.0, 2.0)], math.inf),
    "one in the running step cannot be delayed": ([waits(1.0, 0.2, in_step=True)], math.inf),
    "nor can one that is computed": ([waits(1.0, 0.2, prefilled=True)], math.inf),
}


@pytest.mark.parametrize(("active", "want"), CASES.values(), ids=CASES)
def test_how_long_the_next_step_may_take(active: list[Sequence], want: float) -> None:
    estimates = Estimates(Pacer(load_profile("demo-small"), 1.0))
    assert least_left(estimates, NOW, active) == pytest.approx(want)
