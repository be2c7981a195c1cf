"""The fast plant: against a naive one, and against laws that hold for every plant."""

from __future__ import annotations

import numpy as np
import pytest
from tests.support.naive_plant import NaivePlant, Req

from pdserve.ratio.presets import preset
from pdserve.ratio.types import Counts
from pdserve.sim.arrivals import Arrivals
from pdserve.sim.kernel import layout
from pdserve.sim.plant import Plant, PlantSpec
from pdserve.terms import Slo

SLO = Slo(ttft=1.0, handoff=0.3, tpot=0.05, attainment=0.99)
OUTCOMES = {1: "completed", 2: "expired", 3: "overload", 4: "failed"}


def spec(requests: int, groups: int = 1, slots: int = 64, capacity: int = 8) -> PlantSpec:
    profile = preset("llama2-70b-h100x8", 4, slots)
    return PlantSpec(profile, SLO, groups, capacity, minutes=10, recorded=requests)


def requests(rate: float, seconds: float, seed: int, output: float = 60.0) -> Arrivals:
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(0.0, seconds, rng.poisson(rate * seconds)))
    prompts = np.rint(1 + 1500 * rng.exponential(1.0, len(times)))
    cached = np.floor(prompts * rng.choice([0.0, 0.5], len(times)))
    outputs = np.rint(1 + output * rng.exponential(1.0, len(times)))
    return Arrivals(times, np.stack([prompts, cached, outputs], axis=1).astype(np.int64))


def resized(plant: Plant | NaivePlant, groups: int, counts: tuple[int, int]) -> None:
    """In either plant: create what is missing, serving after 7 s, and drain the newest."""
    if isinstance(plant, Plant):
        plant.apply(Counts(groups, *counts), 7.0)
        return
    for group in range(plant.spec.groups):
        for role, want in zip(("prefill", "decode"), counts, strict=True):
            live = [i for i in plant.insts if (i.role, i.group) == (role, group)]
            live = [i for i in live if i.state != "draining"]
            for inst in live[want:]:
                plant.drain(inst)
            for _ in range(want - len(live)):
                plant.create(role, group, plant.now + 7.0)


CASES = {  # rate, groups, first counts, later counts, decode slots
    "calm": (6.0, 1, (2, 2), (2, 2), 64),
    "prefill short": (18.0, 1, (1, 6), (3, 6), 64),
    "decode short": (14.0, 1, (5, 1), (5, 3), 8),
    "two groups": (20.0, 2, (2, 2), (1, 1), 16),
    "shrinks": (12.0, 1, (4, 6), (1, 2), 16),
}


@pytest.mark.parametrize("name", CASES)
def test_the_fast_plant_does_what_a_naive_one_does(name: str) -> None:
    rate, groups, first, later, slots = CASES[name]
    arrivals = requests(rate, 90.0, seed=sum(map(ord, name)))
    wanted = spec(len(arrivals.times), groups, slots)
    fast = Plant(wanted, Counts(groups, *first))
    fast.feed(arrivals)
    naive = NaivePlant(wanted, cap=8)
    for role in ("prefill", "decode"):
        for group in range(groups):
            for _ in range(first[role == "decode"]):
                naive.create(role, group, 0.0)
    rows = zip(arrivals.times.tolist(), arrivals.tokens.tolist(), strict=True)
    reqs = [Req(number, time, *tokens) for number, (time, tokens) in enumerate(rows)]
    for req in reqs:
        naive.arrive(req)
    for plant in (fast, naive):
        plant.run_until(40.0)
        resized(plant, groups, later)
        plant.run_until(300.0)
    got = fast.outcomes()
    assert [OUTCOMES.get(int(row[layout.O_OUTCOME])) for row in got] == [r.outcome for r in reqs]
    assert got[:, layout.O_LAST] == pytest.approx([r.ended for r in reqs], abs=1e-6)
    done = got[:, layout.O_OUTCOME] == layout.COMPLETED
    assert done.sum() > 100
    completed = [r for r in reqs if r.outcome == "completed"]
    assert got[done, layout.O_FIRST] == pytest.approx([r.first for r in completed], abs=1e-6)
    assert got[done, layout.O_SECOND] == pytest.approx([r.second for r in completed], abs=1e-6)
    assert {row.outcome for row in reqs} > {"completed"} or name == "calm"
