"""Lower bound on device-hours: instances in fractions, switched at no cost, one pool, no waiting.

Work of each minute's feasible requests at the best rate of an instance: prefills in full batches,
decodes at b*, the largest batch that meets TPOT. No policy can do with less; none reaches it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pdserve.ratio.profile import PerformanceProfile
from pdserve.ratio.types import Demand
from pdserve.sim.arrivals import Arrivals
from pdserve.sim.policies.signals import decode_rate
from pdserve.sim.results import DEVICES
from pdserve.sim.shapes import TrafficShape
from pdserve.sim.traffic import BLOCK, block


@dataclass(frozen=True, slots=True)
class FluidNeed:
    """Instances, in fractions, that one minute's requests need at least."""

    prefill: float
    decode: float


def fluid_needs(shape: TrafficShape, seed: int, profile: PerformanceProfile) -> list[FluidNeed]:
    """The need of each minute."""
    minutes = math.ceil(shape.duration / BLOCK)
    return [_need(shape, profile, block(shape, seed, index)) for index in range(minutes)]


def fluid_device_hours(shape: TrafficShape, seed: int, profile: PerformanceProfile) -> float:
    """The bound: device-hours over the shape's duration."""
    needs = fluid_needs(shape, seed, profile)
    return sum(n.prefill + n.decode for n in needs) * BLOCK * DEVICES / 3600


def _need(shape: TrafficShape, profile: PerformanceProfile, arrivals: Arrivals) -> FluidNeed:
    prompts, cached, outputs = (arrivals.tokens[:, k].astype(float) for k in range(3))
    left = prompts - cached
    p = profile.prefill
    alone = p.base + p.per_token * left + p.per_token_squared * left * left
    fits = alone <= shape.slo.ttft
    if not fits.any():
        return FluidNeed(0.0, 0.0)
    work = float((alone - p.base + p.base / profile.prefill_slots)[fits].sum())
    demand = Demand(
        float(fits.sum()) / BLOCK,
        float(prompts[fits].mean()),
        float(left[fits].mean()),
        float(np.square(left[fits]).mean()),
        float(outputs[fits].mean()),
    )
    return FluidNeed(work / BLOCK, demand.rate / decode_rate(profile, demand, shape.slo.tpot))
