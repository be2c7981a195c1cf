"""Closed-loop runs of the ratio loop as in production, on the fast plant.

The plant is four times slower than the published device (as are its targets), so that a quarter
of the requests makes the same load. The loop learns from scrapes every 15 s; it gets neither
the plant's profile nor its cold start.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from pdserve.ratio.choose import Predictor
from pdserve.ratio.model import build
from pdserve.ratio.presets import dilated
from pdserve.ratio.profile import PerformanceProfile
from pdserve.ratio.types import Bounds, Counts, Decision, Demand, LoopSettings, Range, Reason
from pdserve.sim.closed_loop import Run, plant_profile, run
from pdserve.sim.kernel import layout
from pdserve.sim.policies.base import PolicyWorld
from pdserve.sim.policies.pdserve import PdserveLoop
from pdserve.sim.results import judge
from pdserve.sim.shapes import CHAT, TrafficShape
from pdserve.terms import ROLES, Role, Slo

SLOWER = 4.0
TRUTH = dilated(plant_profile(), SLOWER)
SLO = Slo(ttft=4.0, handoff=1.2, tpot=0.2, attainment=0.99)
BOUNDS = Bounds(Range(1, 1), Range(1, 40), Range(1, 40))
Points = tuple[tuple[float, float], ...]


def constant(rate: float, until: float) -> Points:
    return ((0.0, rate), (until, rate))


def step(before: float, after: float, at: float, until: float) -> Points:
    return ((0.0, before), (at, before), (at, after), (until, after))


def shape(points: Points, start: Counts, **over: object) -> TrafficShape:
    values = TrafficShape("case", points, points[-1][0], start, slo=SLO, bounds=BOUNDS)
    return replace(values, **over)  # type: ignore[arg-type]


def least(rate: float, prompt: float = 1200.0, output: float = 200.0) -> Counts:
    """Fewest instances of each role that hold the load, by the plant's own profile."""
    spread = math.exp(0.5**2)
    demand = Demand(rate, prompt, prompt, prompt * prompt * spread, output)
    predict = Predictor(build(TRUTH, demand, SLO))
    return Counts(1, predict.least("prefill", 0.005, 40), predict.least("decode", 0.005, 40))


@dataclass
class LoopRun:
    """A finished run."""

    run: Run
    decisions: list[Decision]
    profile: PerformanceProfile | None
    """What was learned in the end."""

    @property
    def changes(self) -> list[Decision]:
        return [d for d in self.decisions if d.changes]

    @property
    def growths(self) -> list[Decision]:
        return [d for d in self.changes if _instances(d.to) > _instances(d.before)]

    @property
    def reasons(self) -> set[Reason]:
        return {d.reason for d in self.decisions}

    @property
    def attainment(self) -> float:
        return judge(self.run).attainment

    def between(self, start: float, end: float) -> list[Decision]:
        return [d for d in self.changes if start <= d.time < end]

    def counts_at(self, when: float) -> Counts:
        return [c.counts for c in self.run.changes if c.time <= when][-1]

    def healthy_minute_after(self, moment: float, target: float = 0.97) -> float:
        """When the first whole minute after `moment` begins whose arrivals met `target`."""
        minutes = self.run.plant.minutes().sum(axis=1)
        for index in range(math.ceil(moment / 60.0), len(minutes)):
            feasible = minutes[index][layout.B_OFFERED] - minutes[index][layout.B_INFEASIBLE]
            if minutes[index][layout.B_MET] >= target * feasible:
                return index * 60.0
        return math.inf


def loop_run(
    case: TrafficShape,
    seed: int = 1,
    prepare: Callable[[PdserveLoop], None] = lambda _loop: None,
) -> LoopRun:
    """Run a shape under the loop; `prepare` may set it up."""
    loops: list[PdserveLoop] = []

    def make(world: PolicyWorld) -> PdserveLoop:
        loop = PdserveLoop(world, LoopSettings())
        prepare(loop)
        loops.append(loop)
        return loop

    done = run(case, make, seed, profile=TRUTH)
    state = loops[0].state
    return LoopRun(done, loops[0].decisions, None if state is None else state.profile())


def most_above(counts: Counts, wanted: Counts) -> int:
    """By how many instances the role that is furthest above `wanted` is so."""
    return max(counts.total(role) - wanted.total(role) for role in ROLES)


def lost(decisions: list[Decision], role: Role) -> int:
    """Instances of a role that decisions took away, in all."""
    return sum(max(d.before.total(role) - d.to.total(role), 0) for d in decisions)


def _instances(counts: Counts) -> int:
    return counts.total("prefill") + counts.total("decode")


__all__ = ["CHAT", "Counts", "LoopRun", "Reason", "constant", "least", "loop_run", "shape", "step"]
