"""The fast plant: against a naive one, and against laws that hold for every plant."""

from __future__ import annotations

import numpy as np
import pytest
from tests.support.naive_plant import NaivePlant, Req

from pdserve.ratio.presets import preset
from pdserve.ratio.types import Counts
from pdserve.sim.arrivals import Arrivals
from pdserve.sim.kernel import layout
from pdserve.sim.plant import PlantError, PlantSpec, ScenarioPlant
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


def resized(plant: ScenarioPlant | NaivePlant, groups: int, counts: tuple[int, int]) -> None:
    """In either plant: create what is missing, serving after 7 s, and drain the newest."""
    if isinstance(plant, ScenarioPlant):
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
    fast = ScenarioPlant(wanted, Counts(groups, *first))
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


@pytest.mark.parametrize("seed", range(3))
def test_every_request_ends_once_whatever_happens_to_instances(seed: int) -> None:
    rng = np.random.default_rng([7, seed])
    arrivals = requests(16.0, 200.0, seed)
    plant = ScenarioPlant(
        spec(len(arrivals.times), groups=2, slots=12, capacity=24), Counts(2, 2, 2)
    )
    plant.feed(arrivals)
    for at in range(5, 400, 5):
        plant.run_until(float(at))
        serving = [i for i in plant.instances() if i.ready]
        match rng.integers(4):
            case 0 if serving:
                plant.fail(serving[rng.integers(len(serving))].index, 10.0)
            case 1 if serving:
                plant.slow_down(serving[rng.integers(len(serving))].index, rng.uniform(0.5, 3.0))
            case 2:
                counts = Counts(int(rng.integers(1, 3)), *map(int, rng.integers(1, 5, 2)))
                plant.apply(counts, float(rng.uniform(0.0, 20.0)))
            case _:
                plant.limit_batches(int(rng.integers(1, 13)))
    plant.apply(Counts(2, 2, 2), 0.0)
    plant.limit_batches(12)
    plant.run_until(2000.0)
    assert plant.in_flight == plant.waiting == 0
    assert set(plant.outcomes()[:, layout.O_OUTCOME]) <= set(OUTCOMES)
    counters = plant.gateway()
    by_outcome = [layout.G_COMPLETED, layout.G_EXPIRED, layout.G_OVERLOAD, layout.G_FAILED]
    assert counters[layout.G_ARRIVED] == len(arrivals.times)
    assert counters[layout.G_OFFERED] == len(arrivals.times)
    assert sum(counters[k] for k in by_outcome) == len(arrivals.times)
    assert plant.minutes()[..., layout.B_OFFERED].sum() == len(arrivals.times)
    assert all(i.load == i.running == 0 for i in plant.instances())


def test_work_is_counted_once() -> None:
    arrivals = requests(6.0, 100.0, seed=3)
    plant = ScenarioPlant(spec(len(arrivals.times)), Counts(1, 4, 4))
    plant.feed(arrivals)
    plant.run_until(50.0)
    half = [plant.engine(i) for i in plant.instances() if i.role == "decode"]
    plant.run_until(500.0)
    served = plant.outcomes()[:, layout.O_OUTCOME] == layout.COMPLETED
    prompt, cached, output = arrivals.tokens.T
    engines: dict[str, list[list[float]]] = {role: [] for role in ("prefill", "decode")}
    for instance in plant.instances():
        engines[instance.role].append(plant.engine(instance))
    prefill, decode = (np.sum(engines[role], axis=0) for role in ("prefill", "decode"))
    left = (prompt - cached)[served]
    assert prefill[layout.E_REQUESTS] == served.sum()
    assert prefill[layout.E_TOKENS] == left.sum()
    assert prefill[layout.E_SQUARED] == (left.astype(float) ** 2).sum()
    assert decode[layout.E_STEP_REQUESTS] == (output[served] - 1).sum()
    made = [np.arange(o - 1).sum() + p * (o - 1) for p, o in zip(prompt, output, strict=True)]
    assert decode[layout.E_STEP_CONTEXT] == pytest.approx(np.sum(np.array(made)[served]))
    assert (np.sum(half, axis=0)[:4] < decode[:4]).all()
    assert plant.instance_seconds == 8 * 500.0


def test_more_of_a_role_never_serves_fewer_and_slower_ones_never_more() -> None:
    arrivals = requests(15.0, 60.0, seed=5)

    def met(counts: Counts, slow: float = 1.0) -> float:
        plant = ScenarioPlant(spec(len(arrivals.times), capacity=16), counts)
        for instance in list(plant.instances()):
            plant.slow_down(instance.index, slow)
        plant.feed(arrivals)
        plant.run_until(200.0)
        return plant.gateway()[layout.G_MET]

    prefills = [met(Counts(1, n, 12)) for n in (1, 2, 3, 4, 6)]
    decodes = [met(Counts(1, 8, n)) for n in (1, 2, 3, 5)]
    speeds = [met(Counts(1, 3, 3), slow) for slow in (2.0, 1.5, 1.2, 1.0, 0.5)]
    for found in (prefills, decodes, speeds):
        assert found == sorted(found)
        assert found[0] < 0.8 * found[-1]


def test_the_plant_finds_room_for_more_requests_in_flight_than_it_began_with() -> None:
    arrivals = requests(400.0, 20.0, seed=2, output=5.0)
    plant = ScenarioPlant(spec(len(arrivals.times)), Counts(1, 2, 2))
    plant.feed(arrivals)
    plant.run_until(300.0)
    assert plant.gateway()[layout.G_OFFERED] == len(arrivals.times)
    assert plant.in_flight == 0


def test_what_cannot_be_placed_or_is_fed_too_early_is_refused() -> None:
    with pytest.raises(PlantError, match="at most 1 groups of 8"):
        ScenarioPlant(spec(0), Counts(1, 9, 1))
    plant = ScenarioPlant(spec(0), Counts(1, 1, 1))
    plant.feed(requests(5.0, 20.0, seed=1))
    with pytest.raises(PlantError, match="have not arrived"):
        plant.feed(requests(5.0, 20.0, seed=2))
    with pytest.raises(PlantError, match="draining included"):
        for _ in range(9):
            plant.run_until(plant.now + 1.0)
            plant.apply(Counts(1, 8, 8), 0.0)
            plant.run_until(plant.now + 1.0)
            plant.apply(Counts(1, 1, 1), 0.0)
