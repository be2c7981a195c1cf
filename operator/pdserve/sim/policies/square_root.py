"""Square-root staffing per role: `n = R + beta * sqrt(R)`.

Halfin and Whitt, "Heavy-traffic limits for queues with many exponential servers", Operations
Research 29(3), 1981. R is the load in servers: of prefills rate x T_p at the best batch; of decodes
the streams that run at once, of which each decode carries b*. Beta 2.33 keeps the streams below
R + beta * sqrt(R) for 99 % of the time, because above b* every stream is late; prefills, in front
of which requests can wait for several T_p, get 0.7, the best of those tried on the shapes. The rate
is what arrived over the last minute. Growth comes at once; shrinking takes the largest need of the
last five minutes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pdserve.ratio.types import Counts, Demand
from pdserve.sim.policies.base import Moment, PolicyChoice, PolicyWorld
from pdserve.sim.policies.signals import ScrapedSignals, decode_batch, decode_rate, prefill_rate

PREFILL_BETA, DECODE_BETA = 0.7, 2.33
CALM = 300.0
"""Seconds whose largest need holds back shrinking."""


def staffed(load: float, beta: float) -> float:
    """Servers for a load in Erlangs."""
    return load + beta * math.sqrt(load)


def needed(world: PolicyWorld, demand: Demand) -> Counts:
    """Counts for a demand."""
    profile, slo = world.profile, world.slo
    prefill = demand.rate / max(prefill_rate(profile, demand, slo.ttft), 1e-6)
    batch = decode_batch(profile, demand, slo.tpot)
    streams = demand.rate * batch / decode_rate(profile, demand, slo.tpot)
    return Counts(
        1,
        math.ceil(staffed(prefill, PREFILL_BETA)),
        math.ceil(staffed(streams, DECODE_BETA) / batch),
    )


@dataclass(slots=True)
class SquareRoot:
    """See the module."""

    world: PolicyWorld
    period: float = 15.0
    _needs: list[tuple[float, Counts]] = field(default_factory=list)

    def decide(self, moment: Moment) -> PolicyChoice:
        """The largest need of the last five minutes."""
        signals = ScrapedSignals(moment)
        demand = None if signals.away else signals.demand(60.0)
        if demand is None:
            return PolicyChoice(moment.counts, "no data")
        self._needs.append((moment.now, needed(self.world, demand)))
        self._needs = [(at, need) for at, need in self._needs if at > moment.now - CALM]
        prefill = max(need.prefill for _, need in self._needs)
        decode = max(need.decode for _, need in self._needs)
        return PolicyChoice(Counts(1, prefill, decode), f"{demand.rate:.1f} requests/s")
