"""The clairvoyant's dynamic programme against all paths, and its replay against its promise."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from pdserve.ratio.types import Bounds, Counts, Range
from pdserve.sim.clairvoyant import cheapest_path, clairvoyant
from pdserve.sim.closed_loop import plant_profile, run
from pdserve.sim.fluid import fluid_device_hours
from pdserve.sim.policies.fixed import ConstantCounts
from pdserve.sim.results import judge
from pdserve.sim.shapes import DRAWN


@pytest.mark.parametrize("seed", range(12))
def test_no_other_path_costs_less(seed: int) -> None:
    rng = np.random.default_rng(seed)
    states, slots, early = 3, 6, int(rng.integers(0, 3))
    costs = rng.uniform(0.0, 10.0, (states, slots))
    switch = rng.uniform(0.0, 6.0, (states, states))
    np.fill_diagonal(switch, 0.0)
    start = int(rng.integers(states))

    def cost(path: tuple[int, ...]) -> float:
        total = 0.0
        for slot, (before, after) in enumerate(itertools.pairwise(path), 1):
            if after > before and slot < early:
                return np.inf
            total += switch[before, after] + costs[after, slot]
        return total

    paths = (p for p in itertools.product(range(states), repeat=slots) if p[0] == start)
    found = tuple(cheapest_path(costs, switch, start, early))
    assert found[0] == start
    assert cost(found) == pytest.approx(min(map(cost, paths)))


def test_its_replay_meets_the_target_for_less_than_the_peak_and_more_than_the_bound() -> None:
    shape = replace(
        DRAWN["step_x2"],
        points=((0, 3), (300, 3), (300, 9), (600, 9)),
        duration=600.0,
        start=Counts(1, 1, 1),
        bounds=Bounds(Range(1, 1), Range(1, 5), Range(1, 6)),
    )
    profile = plant_profile()
    found = clairvoyant(shape, 3, profile)
    counts = [change.counts for change in found.run.changes]
    peak = Counts(1, max(c.prefill for c in counts), max(c.decode for c in counts))
    constant = judge(run(shape, lambda _world: ConstantCounts(peak), 3))
    assert found.result.worst >= shape.slo.attainment
    assert found.result.device_hours < 0.9 * constant.device_hours
    assert found.result.device_hours > fluid_device_hours(shape, 3, profile)
    assert counts[0] == Counts(1, 1, 1)
    assert counts[-1].decode > 1
