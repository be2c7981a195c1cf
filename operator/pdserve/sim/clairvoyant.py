"""The feasible clairvoyant: least device-hours where every request is known beforehand.

It has the same dispatcher, cold start, bounds and slots as all policies. 1 The plant is run with
constant prefills beside plenty of decodes, and the other way round: misses of each minute by count.
2 Dynamic programme over minutes per role, state = instances: a minute costs its instance-seconds
plus a price for each miss, a start the cold start, an end the drain. 3 The price is raised until
the replay in the plant meets the target in every ten minutes; where a window stays below, its own
price grows. The cheapest timetable whose replay does is the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pdserve.ratio.profile import PerformanceProfile
from pdserve.ratio.types import Counts
from pdserve.sim.closed_loop import CAPACITY, Run, run
from pdserve.sim.fluid import FluidNeed, fluid_needs
from pdserve.sim.kernel import layout
from pdserve.sim.plant import PlantSpec, ScenarioPlant
from pdserve.sim.policies.schedule import CountsTimetable
from pdserve.sim.results import RunResult, judge
from pdserve.sim.shapes import TrafficShape
from pdserve.sim.traffic import BLOCK, block
from pdserve.terms import ROLES, Role

Table = NDArray[np.float64]
DRAIN = 12.0
"""Seconds that an instance takes to end its streams, for the programme's costs."""
FEW = 1e-4
"""Share of misses below which more instances of a role change nothing."""
PRICES = tuple(4.0 * 2.0**k for k in range(14))
"""Instance-seconds for one miss, cheapest first."""
WINDOW = 10
"""Minutes of a window that must meet the target."""
REPAIRS = 10


@dataclass(frozen=True, slots=True)
class Clairvoyant:
    """The timetable's replay in the plant, and its figures."""

    run: Run
    result: RunResult


@dataclass(frozen=True, slots=True)
class _Misses:
    """Misses of each minute: a row for each count from `least` on."""

    least: int
    rows: Table


def clairvoyant(shape: TrafficShape, seed: int, profile: PerformanceProfile) -> Clairvoyant:
    """The cheapest timetable found whose replay meets the target in every ten minutes.

    Where none does, the one with the best worst window.
    """
    needs = fluid_needs(shape, seed, profile)
    tables = {role: _misses(shape, seed, profile, role, needs) for role in ROLES}
    minutes = len(needs)
    found: list[Clairvoyant] = []
    prices = np.ones(minutes)

    def attempt(price: float) -> Clairvoyant:
        tables_of = [_timetable(shape, role, tables[role], prices * price) for role in ROLES]
        done = _replayed(shape, seed, profile, tables_of[0], tables_of[1])
        found.append(done)
        return done

    price = _cheapest(attempt, shape.slo.attainment)
    for _ in range(REPAIRS):
        last = found[-1]
        if last.result.worst >= shape.slo.attainment:
            break
        prices = _raised(shape, last, prices)
        attempt(price)
    good = [c for c in found if c.result.worst >= shape.slo.attainment]
    if good:
        return min(good, key=lambda c: c.result.device_hours)
    return max(found, key=lambda c: c.result.worst)


def _cheapest(attempt: Callable[[float], Clairvoyant], target: float) -> float:
    """The lowest price whose replay meets the target over the whole run, by bisection."""
    low, high = 0, len(PRICES) - 1
    while low < high:
        middle = (low + high) // 2
        if attempt(PRICES[middle]).result.attainment >= target:
            high = middle
        else:
            low = middle + 1
    attempt(PRICES[low])
    return PRICES[low]


def _raised(shape: TrafficShape, last: Clairvoyant, prices: Table) -> Table:
    """Prices with those of the windows that miss the target three times as high."""
    minutes = last.run.plant.minutes().sum(axis=1)
    met = minutes[:, layout.B_MET]
    feasible = minutes[:, layout.B_OFFERED] - minutes[:, layout.B_INFEASIBLE]
    raised = prices.copy()
    for first in range(max(len(met) - WINDOW + 1, 1)):
        window = slice(first, first + WINDOW)
        if met[window].sum() < shape.slo.attainment * feasible[window].sum():
            missed = (feasible - met)[window]
            worst = first + int(np.argmax(missed))
            span = slice(max(worst - 2, 0), worst + 2)
            raised[span] = np.maximum(raised[span], prices[span] * 3.0)
    return raised


def _misses(
    shape: TrafficShape,
    seed: int,
    profile: PerformanceProfile,
    role: Role,
    needs: Sequence[FluidNeed],
) -> _Misses:
    """Run the plant with each count of one role, from the least need on, until none is missed."""
    bounds = shape.bounds.prefill if role == "prefill" else shape.bounds.decode
    fluid = [n.prefill if role == "prefill" else n.decode for n in needs]
    least = max(bounds.min, math.floor(min(fluid)))
    rows: list[Table] = []
    for count in range(least, bounds.max + 1):
        plenty = bounds.max
        counts = Counts(1, count, plenty) if role == "prefill" else Counts(1, plenty, count)
        minutes = _constant(shape, seed, profile, counts)
        feasible = minutes[:, layout.B_OFFERED] - minutes[:, layout.B_INFEASIBLE]
        rows.append(np.maximum(feasible - minutes[:, layout.B_MET], 0.0))
        if rows[-1].sum() <= FEW * feasible.sum():
            break
    return _Misses(least, np.array(rows))


def _constant(shape: TrafficShape, seed: int, profile: PerformanceProfile, counts: Counts) -> Table:
    """Counts by minute of arrival of a plant that never changes."""
    minutes = math.ceil(shape.duration / BLOCK)
    plant = ScenarioPlant(PlantSpec(profile, shape.slo, 1, CAPACITY, minutes=minutes), counts)
    for index in range(minutes):
        plant.feed(block(shape, seed, index))
        plant.run_until(min((index + 1) * BLOCK, shape.duration))
    return np.asarray(plant.minutes().sum(axis=1))


def _timetable(shape: TrafficShape, role: Role, misses: _Misses, prices: Table) -> tuple[int, ...]:
    counts = np.arange(misses.least, misses.least + len(misses.rows))
    costs = counts[:, None] * BLOCK + prices * misses.rows
    more = np.maximum(counts[None, :] - counts[:, None], 0)
    fewer = np.maximum(counts[:, None] - counts[None, :], 0)
    start = int(np.clip(shape.start.total(role) - misses.least, 0, len(counts) - 1))
    early = math.ceil(shape.cold_start / BLOCK)
    path = cheapest_path(costs, more * shape.cold_start + fewer * DRAIN, start, early)
    return tuple(int(counts[index]) for index in path)


def cheapest_path(costs: Table, switch: Table, start: int, early: int) -> list[int]:
    """States of each slot with the least sum of costs, by dynamic programme backwards in time.

    `costs`: a row for each state, a column for each slot. `switch`: cost of going from one state to
    another. The first slot is in state `start`; before slot `early` no state may rise, because
    nothing that is ordered at the start serves yet.
    """
    states, slots = costs.shape
    rises = np.arange(states)[None, :] > np.arange(states)[:, None]
    value = np.zeros(states)
    chosen = np.zeros((slots, states), dtype=np.int64)
    for slot in range(slots - 1, 0, -1):
        total = switch + (costs[:, slot] + value)[None, :]
        if slot < early:
            total = np.where(rises, np.inf, total)
        chosen[slot] = np.argmin(total, axis=1)
        value = total.min(axis=1)
    path = [start]
    for slot in range(1, slots):
        path.append(int(chosen[slot, path[-1]]))
    return path


def _replayed(
    shape: TrafficShape, seed: int, profile: PerformanceProfile,
    prefill: tuple[int, ...], decode: tuple[int, ...],
) -> Clairvoyant:  # fmt: skip
    timetable = CountsTimetable(prefill, decode, BLOCK, shape.cold_start)
    done = run(shape, lambda _world: timetable, seed, profile=profile, scrapes=False)
    return Clairvoyant(done, judge(done))
