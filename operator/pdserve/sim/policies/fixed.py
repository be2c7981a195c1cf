"""Counts that never change: those of the start, or sized for the mean or for the peak."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pdserve.ratio.types import Counts, Demand
from pdserve.sim.policies.base import Moment, PolicyChoice, PolicyWorld
from pdserve.sim.policies.square_root import needed
from pdserve.sim.traffic import BLOCK, block

SEED = 0
"""Of the requests that sizes are taken from; runs have others."""
PEAK = 5
"""Blocks over which the peak is taken."""


@dataclass(slots=True)
class ConstantCounts:
    """The same counts for ever."""

    counts: Counts
    period: float = 60.0

    def decide(self, moment: Moment) -> PolicyChoice:
        """The same counts."""
        return PolicyChoice(self.counts, "fixed")


def at_start(world: PolicyWorld) -> ConstantCounts:
    """Fixed at the shape's first counts."""
    return ConstantCounts(world.shape.start)


def for_mean(world: PolicyWorld) -> ConstantCounts:
    """Fixed at what the mean load needs by square-root staffing."""
    demands = _demands(world)
    return ConstantCounts(needed(world, _mean(demands)))


def for_peak(world: PolicyWorld) -> ConstantCounts:
    """Fixed at the largest need of any five minutes of the run, known beforehand."""
    demands = _demands(world)
    spans = [demands[i : i + PEAK] for i in range(max(len(demands) - PEAK + 1, 1))]
    needs = [needed(world, _mean(span)) for span in spans]
    return ConstantCounts(Counts(1, max(n.prefill for n in needs), max(n.decode for n in needs)))


def _demands(world: PolicyWorld) -> list[Demand]:
    count = int(np.ceil(world.shape.duration / BLOCK))
    found = []
    for index in range(count):
        tokens = block(world.shape, SEED, index).tokens
        if len(tokens) == 0:
            continue
        left = (tokens[:, 0] - tokens[:, 1]).astype(float)
        found.append(
            Demand(
                len(tokens) / BLOCK,
                float(tokens[:, 0].mean()),
                float(left.mean()),
                float((left * left).mean()),
                float(tokens[:, 2].mean()),
            )
        )
    return found


def _mean(demands: list[Demand]) -> Demand:
    """The demand of several blocks together, lengths weighted by requests."""
    rates = np.array([d.rate for d in demands])

    def mean(values: list[float]) -> float:
        return float(np.average(values, weights=rates))

    return Demand(
        float(rates.mean()),
        mean([d.prompt_tokens for d in demands]),
        mean([d.uncached_tokens for d in demands]),
        mean([d.uncached_squared for d in demands]),
        mean([d.output_tokens for d in demands]),
    )
