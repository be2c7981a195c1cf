"""What autoscalers of one role read here: how loaded its instances are, as a share of their limit.

Prefill: the share of time in which it computed. Decode: streams over b*, the largest batch that
meets TPOT at the lengths of the last three minutes.
"""

from __future__ import annotations

from pdserve.ratio.types import Counts
from pdserve.sim.policies.base import Moment, PolicyWorld
from pdserve.sim.policies.signals import ScrapedSignals, decode_batch
from pdserve.terms import Role


def utilisations(
    world: PolicyWorld, moment: Moment, role: Role, seconds: float = 60.0
) -> list[float]:
    """A value for each ready instance of the role; fewer where some were not scraped yet."""
    signals = ScrapedSignals(moment)
    if signals.away:
        return []
    if role == "prefill":
        return signals.busy(moment.prefills, seconds)
    demand = signals.demand(180.0)
    if demand is None:
        return []
    limit = decode_batch(world.profile, demand, world.slo.tpot)
    return [load / limit for load in signals.loads(moment.decodes)]


def concurrency(moment: Moment, role: Role) -> list[float]:
    """Requests in each ready instance of the role."""
    signals = ScrapedSignals(moment)
    pods = moment.prefills if role == "prefill" else moment.decodes
    return [] if signals.away else signals.loads(pods)


def with_role(counts: Counts, role: Role, instances: int) -> Counts:
    """The counts with another number for one role."""
    if role == "prefill":
        return Counts(counts.groups, instances, counts.decode)
    return Counts(counts.groups, counts.prefill, instances)
