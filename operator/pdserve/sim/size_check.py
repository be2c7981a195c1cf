"""Holds a size against the plant: the counts, and with one instance of each role less."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pdserve.ratio.profile import PerformanceProfile
from pdserve.ratio.types import Bounds, Counts, Demand, Range
from pdserve.sim.closed_loop import CAPACITY, run
from pdserve.sim.policies.base import Moment, PolicyChoice
from pdserve.sim.results import RunResult, judge
from pdserve.sim.shapes import Mix, TrafficShape
from pdserve.terms import Slo

SECONDS = 900.0
"""Of traffic, but for the next bound."""
MOST_REQUESTS = 60_000
LEAST_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class SizeCheck:
    """Simulated attainment, 0 to 1, over offered less infeasible requests."""

    counts: float
    less_prefill: float
    less_decode: float
    infeasible: float
    """Share of offered requests whose prompt alone takes longer than TTFT."""
    requests: int
    """That were simulated for `counts`."""


@dataclass(slots=True)
class LimitedCounts:
    """A policy: the same counts for ever, and the batch limit that gateways hold."""

    counts: Counts
    batch_limit: int
    period: float = 60.0

    def decide(self, moment: Moment) -> PolicyChoice:
        """The same counts."""
        return PolicyChoice(self.counts, "sized", self.batch_limit)


def check_size(
    profile: PerformanceProfile, demand: Demand, slo: Slo, counts: Counts, limit: int, seed: int
) -> SizeCheck:
    """Run Poisson arrivals with lognormal lengths through the plant; `limit`: of decode batches.

    Raises:
        ValueError: there are more instances of a role than the plant has places for.
    """
    prefills, decodes = counts.total("prefill"), counts.total("decode")
    if max(prefills, decodes) > CAPACITY:
        raise ValueError(f"{counts}: the simulator holds at most {CAPACITY} instances of a role")

    def attains(few: Counts) -> float:
        if min(few.prefill, few.decode) < 1:
            return 0.0
        return simulated_attainment(profile, demand, slo, few, limit, seed)

    whole = _simulated(profile, demand, slo, counts, limit, seed)
    return SizeCheck(
        whole.attainment,
        attains(Counts(1, prefills - 1, decodes)),
        attains(Counts(1, prefills, decodes - 1)),
        whole.infeasible,
        int(whole.offered),
    )


def simulated_attainment(
    profile: PerformanceProfile, demand: Demand, slo: Slo, counts: Counts, limit: int, seed: int
) -> float:
    """Share (0 to 1) of feasible requests that met the SLO in one run; see `check_size`."""
    return _simulated(profile, demand, slo, counts, limit, seed).attainment


def _simulated(
    profile: PerformanceProfile, demand: Demand, slo: Slo, counts: Counts, limit: int, seed: int
) -> RunResult:
    seconds = max(min(SECONDS, MOST_REQUESTS / demand.rate), LEAST_SECONDS)
    bounds = Bounds(Range(1, counts.groups), Range(1, counts.prefill), Range(1, counts.decode))
    hit = 1.0 - demand.uncached_tokens / demand.prompt_tokens
    spread = demand.uncached_squared / demand.uncached_tokens**2
    shape = TrafficShape(
        "size", ((0.0, demand.rate), (seconds, demand.rate)), seconds, counts,
        mixes=(Mix(0.0, demand.prompt_tokens, demand.output_tokens, hit),),
        spread=math.sqrt(math.log(max(spread, 1.01))), slo=slo, bounds=bounds,
    )  # fmt: skip
    return judge(
        run(shape, lambda _: LimitedCounts(counts, limit), seed, profile=profile, scrapes=False)
    )
