"""Throughput per device of P/D serving at the SLO beside aggregated serving of three kinds."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.harness import Row
from benchmarks.parts import paper_ratio
from benchmarks.parts.aggregated import (
    AggregatedPlant,
    Law,
    World,
    chunked,
    prompts_first,
    static_batches,
)
from benchmarks.parts.paper_claims import Claim, points
from benchmarks.parts.paper_ratio import arrivals, bound, highest, role_rates, throughput

from pdserve.sim.closed_loop import plant_profile

PAPER_FACTOR = 6.7
INSTANCES = 8
"""Of either kind of serving, 8 devices each; P/D has both roles among them."""
SECONDS = 60.0
"""Of traffic on either kind. All begin empty: a long TTFT lets both end above what they sustain."""
PD = "P/D"
STRONGEST = "the best kind"
CHUNKED = "chunked prefill"
SLOWED = 1.5
"""Factor on iterations of the second kind that compute prompts and decode at once."""
CHUNKS = (chunked(256), chunked(1024), chunked(4096))
LAWS: Mapping[str, tuple[float, tuple[Law, ...]]] = {
    CHUNKED: (1.0, CHUNKS),
    f"chunked prefill, mixed iterations {SLOWED:g} times as long": (SLOWED, CHUNKS),
    "whole prompts first": (1.0, (prompts_first,)),
    "static batches": (1.0, (static_batches(4), static_batches(16), static_batches(64))),
}
"""Kinds of aggregated serving, with their factor on mixed iterations; of several sizes the best
one counts."""
MIXES = ("500+500", "1200+200", "3000+100")


@dataclass(frozen=True, slots=True)
class Setting:
    """What is assumed."""

    mix: str
    ttft: float
    tpot: float
    """Seconds."""

    @property
    def served(self) -> paper_ratio.Setting:
        """The same for P/D serving."""
        return paper_ratio.Setting(INSTANCES, self.mix, self.ttft, self.tpot)


def settings() -> Iterator[Setting]:
    """All that are measured."""
    for mix, ttft, tpot in itertools.product(MIXES, (1.0, 4.0, 8.0, 15.0), (0.035, 0.05, 0.1)):
        yield Setting(mix, ttft, tpot)


def pd_throughput(setting: Setting, seed: int) -> float:
    """Requests per second and instance of the best ratio: by the bound, and its neighbours."""
    served = setting.served
    middle = max(range(1, INSTANCES), key=lambda n: bound(served, n))
    near = range(max(1, middle - 1), min(INSTANCES - 1, middle + 1) + 1)
    return max(throughput(served, n, seed, SECONDS) for n in near) / INSTANCES


def aggregated_throughput(setting: Setting, law: Law, factor: float, seed: int) -> float:
    """Requests per second and instance; `factor` on iterations that do both."""
    slo = setting.served.slo
    world = World(plant_profile(), slo, factor)

    def attained(rate: float) -> float:
        plant = AggregatedPlant(world, law, INSTANCES)
        sent = plant.run(arrivals(setting.served, rate, SECONDS, seed))
        feasible = [r for r in sent if _feasible(world, r.prompt)]
        return sum(r.met(slo) for r in feasible) / max(len(feasible), 1)

    return highest(attained, 1.3 * fluid(setting)) / INSTANCES


def fluid(setting: Setting) -> float:
    """Requests per second if roles had fractions of instances, in full batches, with no waiting.

    For aggregated serving with whole prompts it is the same; chunks save the base of prefills.
    """
    prefill, decode = role_rates(setting.served)
    return INSTANCES / (1 / prefill + 1 / decode)


def _feasible(world: World, prompt: int) -> bool:
    """Whether an idle instance would serve it in time, with a prefill's margin for the handoff."""
    alone = world.profile.prefill.base + world.prompt_seconds(0, prompt)
    return 1.05 * alone + 0.02 <= world.slo.ttft


def measure(setting: Setting, seed: int) -> dict[str, float]:
    """Requests per second and instance by kind of serving."""
    found = {
        kind: max(aggregated_throughput(setting, law, factor, seed) for law in laws)
        for kind, (factor, laws) in LAWS.items()
    }
    best = max(found.values())
    return {PD: pd_throughput(setting, seed), STRONGEST: best, **found}


def assumed(s: Setting) -> str:
    """In words."""
    return f"{s.mix} tokens, TTFT {s.ttft:g} s, TPOT {1e3 * s.tpot:g} ms"


Results = Mapping[Setting, Sequence[Mapping[str, float]]]
"""What `measure` returned, of each seed."""


def claims(results: Results) -> list[Claim]:
    """P/D over each kind, where that kind serves anything at the SLO."""
    found = []
    for kind in (STRONGEST, *LAWS):
        factors = {
            assumed(s): [seed[PD] / seed[kind] for seed in seeds]
            for s, seeds in results.items() if all(seed[kind] > 0 for seed in seeds)
        }  # fmt: skip
        if factors:
            what = f"throughput per device, P/D over aggregated: {kind}"
            found.append(Claim(what, PAPER_FACTOR, "times", points(factors), 1.0))
    return found


def rows(results: Results) -> list[Row]:
    """P/D serving beside the strongest aggregated serving, in the mean over the assumptions."""
    rates = {
        kind: statistics.fmean(seed[kind] for seeds in results.values() for seed in seeds)
        for kind in (PD, STRONGEST)
    }
    return [
        Row("throughput of P/D per instance, mean over the assumptions", rates[PD], "1/s",
            f"aggregated: {STRONGEST}", max(rates[STRONGEST], 1e-9), 1.0, "higher", len(results))
    ]  # fmt: skip
