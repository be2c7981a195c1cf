"""The fast plant against closed forms: M/M/n in front of prefills, M/G/1-PS inside a decode."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pdserve.ratio.profile import DecodeProfile, PerformanceProfile, PrefillProfile
from pdserve.ratio.types import Counts
from pdserve.sim.arrivals import Arrivals
from pdserve.sim.kernel import layout
from pdserve.sim.plant import PlantSpec, ScenarioPlant
from pdserve.terms import Slo

PATIENT = Slo(ttft=1e6, handoff=1e6, tpot=1e6, attainment=0.99)


def erlang_c_wait(servers: int, rho: float) -> float:
    """Mean wait of M/M/n in units of the mean service time."""
    load = servers * rho
    terms = [load**k / math.factorial(k) for k in range(servers)]
    last = load**servers / math.factorial(servers) / (1 - rho)
    return last / (sum(terms) + last) / (servers * (1 - rho))


def assert_mean(values: np.ndarray, expected: float) -> None:
    """The mean is the expected one within 3.5 standard errors, themselves small.

    Neighbours in a queue depend on each other: errors are those of 25 batches' means.
    """
    means = np.array([batch.mean() for batch in np.array_split(values, 25)])
    error = means.std(ddof=1) / 5.0
    assert error < 0.1 * expected
    assert abs(means.mean() - expected) < 3.5 * error + 0.005 * expected


@pytest.mark.parametrize(("servers", "rho"), [(1, 0.5), (3, 0.6), (8, 0.7)])
def test_prefills_of_one_slot_are_an_mmn_queue(servers: int, rho: float) -> None:
    count, seconds = 25_000, 1e-4
    rng = np.random.default_rng(servers)
    mean = 1e5  # tokens, so that rounding to whole ones does not matter
    times = np.cumsum(rng.exponential(mean * seconds / (servers * rho), count))
    prompts = np.rint(rng.exponential(mean, count)) + 1
    tokens = np.stack([prompts, np.zeros(count), np.ones(count)], axis=1)
    profile = PerformanceProfile(
        PrefillProfile(0.0, seconds, 0.0), DecodeProfile(1.0, 0.0, 0.0), 1, 64
    )
    plant = ScenarioPlant(
        PlantSpec(profile, PATIENT, safety=0.0, recorded=count, capacity=16), Counts(1, servers, 1)
    )
    plant.feed(Arrivals(times, tokens.astype(np.int64)))
    plant.run_until(float(times[-1]) * 2)
    outcomes = plant.outcomes()
    assert (outcomes[:, layout.O_OUTCOME] == layout.COMPLETED).all()
    waits = outcomes[:, layout.O_FIRST] - outcomes[:, layout.O_ARRIVED] - prompts * seconds
    expected = erlang_c_wait(servers, rho) * mean * seconds
    assert waits.min() >= -1e-6
    assert_mean(waits, expected)


@pytest.mark.parametrize("shape", ["exponential", "two sizes"])
def test_a_decode_without_fixed_costs_shares_its_processor(shape: str) -> None:
    """E[T | x] = x / (1 - rho), whatever the distribution of sizes."""
    count, step, rho = 8_000, 0.001, 0.6
    rng = np.random.default_rng(3)
    if shape == "exponential":
        sizes = np.rint(rng.exponential(400.0, count)) + 50
    else:
        sizes = rng.choice([100.0, 1500.0], count, p=[0.8, 0.2])
    times = np.cumsum(rng.exponential(sizes.mean() * step / rho, count))
    tokens = np.stack([np.ones(count), np.zeros(count), sizes + 1], axis=1)
    profile = PerformanceProfile(
        PrefillProfile(1e-9, 0.0, 0.0), DecodeProfile(0.0, step, 0.0), 64, 512
    )
    spec = PlantSpec(
        profile, PATIENT, safety=0.0, recorded=count, transfer=0.0, transfer_per_token=0.0
    )
    plant = ScenarioPlant(spec, Counts(1, 16, 1))
    plant.feed(Arrivals(times, tokens.astype(np.int64)))
    plant.run_until(float(times[-1]) * 3)
    outcomes = plant.outcomes()
    stays = outcomes[:, layout.O_LAST] - outcomes[:, layout.O_FIRST]
    middle = np.median(sizes)
    for some in (sizes <= middle, sizes > middle) if shape == "exponential" else (
        sizes == 100.0, sizes == 1500.0
    ):  # fmt: skip
        assert_mean(stays[some] / (sizes[some] * step), 1 / (1 - rho))
