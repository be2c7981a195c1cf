"""Planners that compute counts from a forecast of the load and measured rates per instance.

`Mm1`: arXiv 2603.04716. A prefill is an M/M/1 queue whose mean time in system must be at most TTFT,
so it may take `mu - 1/TTFT` requests per second: in tokens, T_max - L_in/TTFT. A decode runs the
largest batch that meets TPOT. Counts are demand / rate, rounded up.

`TokenScale`: arXiv 2512.03416. Velocities in tokens per second: prefill V_P, decode V_D = tokens of
a batch / TPOT; counts = tokens per second that arrive (or are to be made) / velocity. Its
convertible decoders are left out.

`Dopd`: arXiv 2511.20982, from its abstract and overview, because its formulas were not at hand:
forecast the load, size decode by its rate within TPOT and prefill by the balanced P/D ratio, the
ratio of both rates within their targets. Reconfigures every minute; its scheduling of mixed
lengths is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pdserve.ratio.profile import PerformanceProfile
from pdserve.ratio.types import Counts, Demand
from pdserve.sim.policies.base import Moment, PolicyChoice, PolicyWorld
from pdserve.sim.policies.forecast import KalmanTrend
from pdserve.sim.policies.signals import (
    ScrapedSignals,
    decode_batch,
    decode_rate,
    prefill_rate,
    prefill_seconds,
)
from pdserve.terms import Slo

WINDOW = 60.0


def mm1_rate(mu: float, ttft: float) -> float:
    """Requests per second that an M/M/1 server may take for a mean time of `ttft` in system."""
    return max(mu - 1.0 / ttft, 0.0)


def mm1_counts(profile: PerformanceProfile, slo: Slo, demand: Demand) -> Counts:
    """Counts by the M/M/1 planner; 0 of a role never, and 1,000 where no rate is allowed."""
    allowed = mm1_rate(prefill_rate(profile, demand, slo.ttft), slo.ttft)
    prefill = math.ceil(demand.rate / allowed) if allowed > 0 else 1000
    decode = math.ceil(demand.rate / decode_rate(profile, demand, slo.tpot))
    return Counts(1, max(prefill, 1), max(decode, 1))


def token_counts(profile: PerformanceProfile, slo: Slo, demand: Demand) -> Counts:
    """Counts by TokenScale's velocities."""
    velocity = demand.uncached_tokens / prefill_seconds(profile, demand)
    made = decode_batch(profile, demand, slo.tpot) / slo.tpot
    prefill = math.ceil(demand.rate * demand.uncached_tokens / velocity)
    return Counts(1, max(prefill, 1), max(math.ceil(demand.rate * demand.output_tokens / made), 1))


def dopd_counts(profile: PerformanceProfile, slo: Slo, demand: Demand) -> Counts:
    """Decode by its rate, prefill by the ratio that balances both."""
    decodes = decode_rate(profile, demand, slo.tpot)
    ratio = decodes / max(prefill_rate(profile, demand, slo.ttft), 1e-6)
    decode = max(math.ceil(demand.rate / decodes), 1)
    return Counts(1, max(math.ceil(ratio * decode), 1), decode)


@dataclass(slots=True)
class _Planner:
    """A demand of the last minute, counts for it."""

    world: PolicyWorld
    period: float = 60.0

    def decide(self, moment: Moment) -> PolicyChoice:
        """Counts for what arrived in the last minute."""
        signals = ScrapedSignals(moment)
        demand = None if signals.away else signals.demand(WINDOW)
        if demand is None:
            return PolicyChoice(moment.counts, "no data")
        return PolicyChoice(self.counts(demand), f"{demand.rate:.1f} requests/s")

    def counts(self, demand: Demand) -> Counts:
        raise NotImplementedError


@dataclass(slots=True)
class Mm1(_Planner):
    """See the module."""

    def counts(self, demand: Demand) -> Counts:
        """Counts for a demand."""
        return mm1_counts(self.world.profile, self.world.slo, demand)


@dataclass(slots=True)
class TokenScale(_Planner):
    """See the module."""

    def counts(self, demand: Demand) -> Counts:
        """Counts for a demand."""
        return token_counts(self.world.profile, self.world.slo, demand)


@dataclass(slots=True)
class Dopd(_Planner):
    """See the module."""

    _trend: KalmanTrend = field(default_factory=KalmanTrend)

    def counts(self, demand: Demand) -> Counts:
        """Counts for the demand that is expected a period ahead."""
        ahead = max(self._trend.next(demand.rate), demand.rate * 0.5)
        expected = Demand(
            ahead, demand.prompt_tokens, demand.uncached_tokens, demand.uncached_squared,
            demand.output_tokens,
        )  # fmt: skip
        return dopd_counts(self.world.profile, self.world.slo, expected)
