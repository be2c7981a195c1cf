"""What reaction alone can reach: the present load is known at once, nothing of what comes.

Counts are at every moment the fewest that hold the load of that moment, by the plant's own profile
and the sizing of `ratio.model`; instances start in the plant's own cold start. Metrics, windows and
learning cost it nothing. A shape whose target it misses is met by no law that only reacts: that
takes instances beyond what the load before the rise needs, or knowledge of the rise. No policy to
run: a reference beside the table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pdserve.ratio.choose import Predictor
from pdserve.ratio.model import admission_batch, build
from pdserve.ratio.types import Counts, Demand
from pdserve.sim.policies.base import Moment, PolicyChoice, PolicyWorld

TRACED = 60.0
"""Seconds of a trace's last requests that are its present load."""


@dataclass(slots=True)
class Reaction:
    """See the module."""

    world: PolicyWorld
    period: float = 5.0

    def decide(self, moment: Moment) -> PolicyChoice:
        """The fewest instances of each role for the load of this moment."""
        demand = self._demand(moment.now)
        if demand is None:
            return PolicyChoice(moment.counts, "no load")
        profile, slo, bounds = self.world.profile, self.world.slo, self.world.bounds
        predict = Predictor(build(profile, demand, slo))
        allowed = (1.0 - slo.attainment) / 2
        counts = Counts(
            1,
            predict.least("prefill", allowed, bounds.prefill.max),
            predict.least("decode", allowed, bounds.decode.max),
        )
        batch = admission_batch(profile, demand.context_tokens, slo)
        return PolicyChoice(counts, f"{demand.rate:.1f} requests/s", batch)

    def _demand(self, now: float) -> Demand | None:
        shape = self.world.shape
        if shape.recorded is None:
            at = np.array([now])
            rate = float(shape.rate(at)[0])
            prompt, hit, output = (float(values[0]) for values in shape.means(at))
            left = prompt * (1.0 - hit)
            return Demand(rate, prompt, left, left * left * math.exp(shape.spread**2), output)
        last = shape.recorded.between(max(now - TRACED, 0.0), now)
        if len(last.times) == 0:
            return None
        prompts, cached, outputs = (last.tokens[:, k].astype(float) for k in range(3))
        left_of = prompts - cached
        rate = len(last.times) / min(TRACED, max(now, 1.0))
        return Demand(
            rate, float(prompts.mean()), float(left_of.mean()), float(np.square(left_of).mean()),
            float(outputs.mean()),
        )  # fmt: skip
