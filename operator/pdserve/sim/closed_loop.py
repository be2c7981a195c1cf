"""A shape under a policy: requests, scrapes, decisions, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from pdserve.ratio.presets import preset
from pdserve.ratio.profile import PerformanceProfile
from pdserve.ratio.types import Counts
from pdserve.sim import traffic
from pdserve.sim.plant import PlantSpec, ScenarioPlant
from pdserve.sim.policies.base import Moment, Policy, PolicyChoice, PolicyWorld
from pdserve.sim.shapes import DECODE_SLOTS, PREFILL_SLOTS, Fault, TrafficShape
from pdserve.sim.virtual_prometheus import WINDOWS, VirtualPrometheus

SCRAPE = 15.0
TICK = 5.0
"""Seconds between two moments at which scrapes and decisions may be due."""
FIRST_DECISION = 60.0
"""When the shortest window is full: what ran before the start was never scraped."""
PRESET = "llama2-70b-h100x8"
CAPACITY = 64


@dataclass(frozen=True, slots=True)
class CountsChange:
    """Counts that a policy chose."""

    time: float
    counts: Counts
    reason: str


@dataclass(slots=True)
class Run:
    """A finished run."""

    shape: TrafficShape
    plant: ScenarioPlant
    changes: list[CountsChange] = field(default_factory=list)
    """The counts at the start, then every change."""


def plant_profile() -> PerformanceProfile:
    """Times of one instance: llama2-70b on 8 H100, 4 prefill and 64 decode slots.

    Fitted on Splitwise's published measurements (`ratio.presets`).
    """
    return preset(PRESET, PREFILL_SLOTS, DECODE_SLOTS)


def run(
    shape: TrafficShape,
    make: Callable[[PolicyWorld], Policy],
    seed: int,
    progress: Callable[[float], None] = lambda _share: None,
    profile: PerformanceProfile | None = None,
    scrapes: bool = True,
) -> Run:
    """Run a shape under the policy that `make` returns.

    `progress` hears the share of the time that has passed. `profile`: the plant's, in place of
    `plant_profile()`. `scrapes`: False for a policy that reads no metrics.
    """
    truth = plant_profile() if profile is None else profile
    start = within(shape, shape.start)
    minutes = math.ceil(shape.duration / traffic.BLOCK)
    plant = ScenarioPlant(
        PlantSpec(truth, shape.slo, shape.bounds.groups.max, CAPACITY, minutes=minutes), start
    )
    policy = make(PolicyWorld(shape, truth))
    metrics = VirtualPrometheus(SCRAPE, shape.delay, shape.outage)
    done = Run(shape, plant, [CountsChange(0.0, start, "start")])
    faults = sorted(shape.faults, key=lambda fault: fault.at)
    due_scrape, due_decision = 0.0, FIRST_DECISION
    for index in range(minutes):
        plant.feed(traffic.block(shape, seed, index))
        end = min((index + 1) * traffic.BLOCK, shape.duration)
        while plant.now < end:
            if plant.now >= due_scrape:
                if scrapes:
                    metrics.scrape(plant)
                due_scrape += metrics.interval
            while faults and faults[0].at <= plant.now:
                _strike(plant, faults.pop(0), shape.cold_start)
            if plant.now >= due_decision:
                _decide(done, policy, metrics)
                due_decision += policy.period
            plant.run_until(min(plant.now + TICK, end))
        progress((index + 1) / minutes)
    return done


def within(shape: TrafficShape, counts: Counts) -> Counts:
    """The nearest counts inside the shape's bounds and budget; the larger role gives way first."""
    counts = shape.bounds.clamp(counts)
    while shape.budget is not None and _instances(counts) > shape.budget:
        role = "prefill" if counts.prefill > counts.decode else "decode"
        less = Counts(
            counts.groups,
            counts.prefill - (role == "prefill"),
            counts.decode - (role == "decode"),
        )
        if shape.bounds.clamp(less) != less:
            break
        counts = less
    return counts


def _instances(counts: Counts) -> int:
    return counts.total("prefill") + counts.total("decode")


def _decide(done: Run, policy: Policy, metrics: VirtualPrometheus) -> None:
    plant, shape = done.plant, done.shape
    ready = [i for i in plant.instances() if i.ready and not i.draining]
    prefills = tuple(i.name for i in ready if i.role == "prefill")
    decodes = tuple(i.name for i in ready if i.role == "decode")
    sample = metrics.sample(plant, WINDOWS[0])
    choice: PolicyChoice = policy.decide(
        Moment(
            plant.now, plant.counts, len(prefills), len(decodes), sample, metrics, prefills, decodes
        )
    )
    if choice.batch_limit is not None:
        plant.limit_batches(choice.batch_limit)
    wanted = within(shape, choice.counts)
    if wanted != plant.counts:
        plant.apply(wanted, shape.cold_start)
        done.changes.append(CountsChange(plant.now, wanted, choice.reason))


def _strike(plant: ScenarioPlant, fault: Fault, cold_start: float) -> None:
    serving = [i for i in plant.instances() if i.ready and i.role == fault.role]
    if not serving:
        return
    oldest = min(serving, key=lambda i: i.ready_since)
    if fault.slow is None:
        plant.fail(oldest.index, cold_start)
    else:
        plant.slow_down(oldest.index, fault.slow)
