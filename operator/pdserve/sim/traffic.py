"""Requests of a shape: times, and tokens of prompt, prefix hit and output, by one seed.

Poisson arrivals at a rate that changes with time, in blocks of a minute that each have a seed of
their own, so that what clients ask depends on nothing that the service does.
"""

from __future__ import annotations

import numpy as np

from pdserve.sim.arrivals import Arrivals
from pdserve.sim.shapes import TrafficShape

BLOCK = 60.0
"""Seconds of one block."""
HOPELESS_PROMPT = 40_000.0
"""Mean tokens of prompts that no prefill computes within the TTFT of the drawn shapes."""
SHORTEST_OUTPUT = 3
"""Tokens; a shorter answer has no time per output token."""


def block(shape: TrafficShape, seed: int, index: int) -> Arrivals:
    """Requests of the block that begins `index` minutes after the start."""
    start, end = index * BLOCK, min((index + 1) * BLOCK, shape.duration)
    if shape.recorded is not None:
        return shape.recorded.between(start, end)
    return _drawn(shape, start, end, np.random.default_rng([seed, index]))


def _drawn(shape: TrafficShape, start: float, end: float, rng: np.random.Generator) -> Arrivals:
    """Thinning: arrivals at the highest rate of the block, of which each stays with its share."""
    most = shape.highest_rate(start, end)
    count = rng.poisson(most * (end - start))
    times = np.sort(rng.uniform(start, end, count))
    times = times[rng.uniform(0.0, most, count) < shape.rate(times)]
    prompt, hit, output = shape.means(times)
    spread = shape.spread
    factors = np.exp(spread * rng.standard_normal((2, len(times))) - spread * spread / 2)
    if shape.hopeless:
        prompt = np.where(rng.uniform(size=len(times)) < shape.hopeless, HOPELESS_PROMPT, prompt)
    prompts = np.maximum(1, np.rint(prompt * factors[0]))
    cached = np.minimum(np.floor(prompts * hit), prompts - 1)
    outputs = np.maximum(SHORTEST_OUTPUT, np.rint(output * factors[1]))
    return Arrivals(times, np.stack([prompts, cached, outputs], axis=1).astype(np.int64))
