"""Dynamo's planner, both loops (components/src/dynamo/planner/core).

Throughput loop, every 180 s: demand = predicted requests / window; P = ceil(demand / rate of one
prefill within TTFT at ISL x (1 - hit)), D = ceil(demand / rate of one decode within ITL at context
ISL + OSL/2), each at least 1. With the load loop on they are lower bounds.

Load loop, +-1 per role: up when every engine's estimated TTFT (or ITL) passes the SLA; down when,
with load x N/(N-1), the queueing part of TTFT stays below 0.8 x (SLA - own compute), or ITL below
0.8 x SLA. Its engines push a record of each pass; here it reads the same 15 s scrapes as all.
`Throughput` runs the first loop alone, `Dynamo` both. Predictor: Kalman local trend.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pdserve.ratio.types import Counts, Demand
from pdserve.sim.policies.base import Moment, PolicyChoice, PolicyWorld
from pdserve.sim.policies.forecast import KalmanTrend
from pdserve.sim.policies.signals import ScrapedSignals, decode_rate, prefill_rate, prefill_seconds

SLOW, FAST = 180.0, 15.0
SAFE = 0.8
LEAST = Counts(1, 1, 1)


def throughput_counts(world: PolicyWorld, demand: Demand) -> Counts:
    """Counts for a predicted demand."""
    prefills = prefill_rate(world.profile, demand, world.slo.ttft)
    decodes = decode_rate(world.profile, demand, world.slo.tpot)
    prefill = math.ceil(demand.rate / prefills) if prefills > 0 else 1
    return Counts(1, max(prefill, 1), max(math.ceil(demand.rate / decodes), 1))


def step_for_prefill(waits: list[float], own: float, ttft: float) -> int:
    """+1, 0 or -1 prefills; `waits` are seconds queued in front of each engine."""
    if not waits:
        return 0
    if min(waits) + own > ttft:
        return 1
    n = len(waits)
    if n > 1 and max(waits) * n / (n - 1) < SAFE * (ttft - own):
        return -1
    return 0


def step_for_decode(itls: list[float], fewer: list[float], itl: float) -> int:
    """+1, 0 or -1 decodes; `fewer` are step times with one decode less."""
    if not itls:
        return 0
    if min(itls) > itl:
        return 1
    if len(itls) > 1 and max(fewer) < SAFE * itl:
        return -1
    return 0


@dataclass(slots=True)
class Throughput:
    """The first loop."""

    world: PolicyWorld
    period: float = SLOW
    _trend: KalmanTrend = field(default_factory=KalmanTrend)

    def decide(self, moment: Moment) -> PolicyChoice:
        """Counts for what is expected in the next window."""
        found = self.floor(moment)
        return PolicyChoice(moment.counts if found is None else found, "throughput")

    def floor(self, moment: Moment) -> Counts | None:
        """The counts; None without data."""
        signals = ScrapedSignals(moment)
        demand = None if signals.away else signals.demand(SLOW)
        if demand is None:
            return None
        expected = Demand(
            self._trend.next(demand.rate), demand.prompt_tokens, demand.uncached_tokens,
            demand.uncached_squared, demand.output_tokens,
        )  # fmt: skip
        return throughput_counts(self.world, expected)


@dataclass(slots=True)
class Dynamo:
    """Both loops."""

    world: PolicyWorld
    period: float = FAST
    _slow: Throughput | None = None
    _slow_at: float = 0.0
    _floor: Counts = LEAST

    def decide(self, moment: Moment) -> PolicyChoice:
        """A step of each role at most, not below the throughput loop's counts."""
        if self._slow is None:
            self._slow = Throughput(self.world)
        if moment.now - self._slow_at >= SLOW:
            self._slow_at = moment.now
            self._floor = self._slow.floor(moment) or self._floor
        counts, signals = moment.counts, ScrapedSignals(moment)
        demand = None if signals.away else signals.demand(180.0)
        settled = (
            moment.ready_prefill == counts.prefill and moment.ready_decode == counts.decode
        )  # waits for a change to complete before the next
        if demand is not None and settled:
            counts = self._stepped(moment, signals, demand)
        return PolicyChoice(
            Counts(
                1,
                max(counts.prefill, self._floor.prefill),
                max(counts.decode, self._floor.decode),
            ),
            "load",
        )

    def _stepped(self, moment: Moment, signals: ScrapedSignals, demand: Demand) -> Counts:
        profile, slo, counts = self.world.profile, self.world.slo, moment.counts
        own = prefill_seconds(profile, demand)
        shared = signals.waiting / max(len(moment.prefills), 1)
        waits = [own * (max(load - 1.0, 0.0) + shared) for load in signals.loads(moment.prefills)]
        running = signals.loads(moment.decodes)
        more = len(running) / max(len(running) - 1, 1)
        context = demand.context_tokens
        itls = [profile.decode.step_seconds(load, context) for load in running]
        fewer = [profile.decode.step_seconds(load * more, context) for load in running]
        return Counts(
            1,
            counts.prefill + step_for_prefill(waits, own, slo.ttft),
            counts.decode + step_for_decode(itls, fewer, slo.tpot),
        )
