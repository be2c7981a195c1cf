"""The plant forwards as the gateway's own code does."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from tests.support.forwarded_plant import ForwardedPlant
from tests.support.naive_plant import Req

from pdserve.ratio.presets import preset
from pdserve.ratio.types import Counts
from pdserve.sim.arrivals import Arrivals
from pdserve.sim.kernel import layout
from pdserve.sim.plant import PlantSpec, ScenarioPlant
from pdserve.terms import Slo

SLO = Slo(ttft=1.0, handoff=0.3, tpot=0.05, attainment=0.99)
SECONDS = 120.0


def chat(rate: float, seed: int, output: float) -> Arrivals:
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(0.0, SECONDS, rng.poisson(rate * SECONDS)))
    factors = np.exp(0.5 * rng.standard_normal((2, len(times))) - 0.125)
    prompts = np.maximum(1, np.rint(1200 * factors[0]))
    outputs = np.maximum(3, np.rint(output * factors[1]))
    tokens = np.stack([prompts, np.zeros(len(times)), outputs], axis=1)
    return Arrivals(times, tokens.astype(np.int64))


def met(reqs: list[Req]) -> int:
    found = 0
    for r in reqs:
        if r.outcome == "completed":
            tpot = (r.ended - r.second) / (r.output - 2)
            found += (
                r.first - r.arrived <= SLO.ttft
                and r.second - r.first <= SLO.handoff
                and tpot <= SLO.tpot
            )
    return found


@pytest.mark.parametrize(
    ("rate", "prefills", "decodes", "slots", "output"),
    [
        (15.0, 2, 4, 64, 150.0),  # enough of both
        (20.0, 2, 8, 64, 60.0),  # prefills just too few
        (30.0, 2, 8, 64, 60.0),  # far too few
        (15.0, 4, 3, 32, 150.0),  # decodes too few, and late above b*
        (15.0, 4, 2, 24, 100.0),  # far too few
    ],
)
def test_outcomes_are_those_of_the_real_dispatcher_and_decode_walk(
    rate: float, prefills: int, decodes: int, slots: int, output: float
) -> None:
    arrivals = chat(rate, 11, output)
    profile = preset("llama2-70b-h100x8", 4, slots)
    spec = PlantSpec(profile, SLO, capacity=16, recorded=len(arrivals.times))
    fast = ScenarioPlant(spec, Counts(1, prefills, decodes))
    fast.feed(arrivals)
    real = ForwardedPlant(spec, prefills, decodes)
    rows = zip(arrivals.times.tolist(), arrivals.tokens.tolist(), strict=True)
    reqs = [Req(number, time, *tokens) for number, (time, tokens) in enumerate(rows)]
    for req in reqs:
        real.arrive(req)
    for plant in (fast, real):
        plant.run_until(400.0)
    total = len(reqs)
    outcomes = Counter(r.outcome for r in reqs)
    counters = fast.gateway()
    assert sum(outcomes.values()) == total
    for name, column in (
        ("completed", layout.G_COMPLETED), ("expired", layout.G_EXPIRED),
        ("overload", layout.G_OVERLOAD),
    ):  # fmt: skip
        assert counters[column] / total == pytest.approx(outcomes[name] / total, abs=0.04), name
    assert counters[layout.G_MET] / total == pytest.approx(met(reqs) / total, abs=0.04)
