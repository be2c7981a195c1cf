"""Throughput at the SLO of an adjusted P/D ratio beside fixed ones, at one number of instances."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from benchmarks.harness import Row
from benchmarks.parts.paper_claims import Claim, points

from pdserve.ratio.types import Counts
from pdserve.sim.arrivals import Arrivals
from pdserve.sim.closed_loop import plant_profile, run
from pdserve.sim.kernel import layout
from pdserve.sim.plant import PlantSpec, ScenarioPlant
from pdserve.sim.policies.pdserve import PdserveLoop
from pdserve.sim.shapes import Mix, TrafficShape
from pdserve.terms import Slo

PAPER_GAIN = 60.0
"""Percent, figure 13a: the best ratio over the others."""
SECONDS, SPREAD = 180.0, 0.5
SETTLE = 900.0
"""Seconds that the operator's loop has for finding a ratio."""
TARGET = 0.99
STEPS = 8
"""Halvings of the interval in which the highest rate lies."""
MIXES = ("1200+200", "1200+300", "3000+100", "500+500")
"""Mean prompt and output tokens; the second is the first with half as many output tokens more."""
LOOP = "loop"


@dataclass(frozen=True, slots=True)
class Setting:
    """What is assumed."""

    instances: int
    """Of both roles together."""
    mix: str
    ttft: float
    tpot: float = 0.05
    """Seconds."""

    @property
    def slo(self) -> Slo:
        """The plant's targets."""
        return Slo(ttft=self.ttft, handoff=0.3, tpot=self.tpot, attainment=TARGET)

    @property
    def lengths(self) -> tuple[float, float]:
        """Mean prompt and output tokens."""
        prompt, output = self.mix.split("+")
        return float(prompt), float(output)


def settings() -> Iterator[Setting]:
    """All that are measured."""
    for instances, mix, ttft in itertools.product((4, 8, 12), MIXES, (1.0, 2.0)):
        yield Setting(instances, mix, ttft)


def arrivals(setting: Setting, rate: float, seconds: float, seed: int) -> Arrivals:
    """Poisson arrivals with lognormal lengths."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(0.0, seconds, rng.poisson(rate * seconds)))
    prompt, output = setting.lengths
    factors = np.exp(SPREAD * rng.standard_normal((2, len(times))) - SPREAD * SPREAD / 2)
    columns = [
        np.maximum(1, prompt * factors[0]), np.zeros(len(times)), np.maximum(3, output * factors[1])
    ]  # fmt: skip
    return Arrivals(times, np.rint(np.stack(columns, axis=1)).astype(np.int64))


def attained(
    setting: Setting, prefills: int, rate: float, seed: int, seconds: float | None = None
) -> float:
    """Share that met the SLO, of those that an idle prefill could serve.

    `seconds` of traffic; None: `SECONDS`.
    """
    span = SECONDS if seconds is None else seconds
    counts = Counts(1, prefills, setting.instances - prefills)
    plant = ScenarioPlant(PlantSpec(plant_profile(), setting.slo, capacity=16), counts)
    plant.feed(arrivals(setting, rate, span, seed))
    plant.run_until(span + 120.0)
    counted = plant.gateway()
    served = counted[layout.G_OFFERED] - counted[layout.G_INFEASIBLE]
    return counted[layout.G_MET] / max(served, 1.0)


def role_rates(setting: Setting) -> tuple[float, float]:
    """Requests per second of one prefill and of one decode in full batches."""
    profile = plant_profile()
    prompt, output = setting.lengths
    square = prompt * prompt * float(np.exp(SPREAD * SPREAD))
    batch = profile.prefill.batch_seconds(profile.prefill_slots, prompt, square)
    step = profile.decode.step_seconds(profile.decode_slots, prompt + output / 2)
    return profile.prefill_slots / batch, profile.decode_slots / (step * output)


def bound(setting: Setting, prefills: int) -> float:
    """Requests per second that no such counts can serve: full batches, no waiting."""
    prefill, decode = role_rates(setting)
    return min(prefills * prefill, (setting.instances - prefills) * decode)


def throughput(setting: Setting, prefills: int, seed: int, seconds: float | None = None) -> float:
    """The highest rate, in requests per second, at which the target is met; 0: at none.

    `seconds` as of `attained`.
    """
    most = 1.1 * bound(setting, prefills)
    return highest(lambda rate: attained(setting, prefills, rate, seed, seconds), most)


def highest(attained_at: Callable[[float], float], most: float) -> float:
    """The highest rate up to `most`, by halving, at which the target is met; 0: at none."""
    low, high = 0.0, most
    for _ in range(STEPS):
        middle = (low + high) / 2
        if attained_at(middle) >= TARGET:
            low = middle
        else:
            high = middle
    return low


def measure(setting: Setting, seed: int) -> dict[str, float]:
    """Throughput by number of prefills, and the number that the operator's loop ends at.

    The loop begins with as many prefills as decodes and may use no more instances; the load is what
    the best ratio carries.
    """
    found = {
        str(prefills): throughput(setting, prefills, seed)
        for prefills in range(1, setting.instances)
    }
    return {**found, LOOP: float(loop_prefills(setting, max(found.values()), seed))}


def loop_prefills(setting: Setting, rate: float, seed: int) -> int:
    """Prefills that the operator's loop has in the end."""
    half = setting.instances // 2
    prompt, output = setting.lengths
    shape = TrafficShape(
        "paper", ((0.0, rate), (SETTLE, rate)), SETTLE, Counts(1, half, setting.instances - half),
        mixes=(Mix(0.0, prompt, output),), spread=SPREAD, slo=setting.slo,
        budget=setting.instances,
    )  # fmt: skip
    return run(shape, PdserveLoop, seed).plant.counts.prefill


Results = Mapping[Setting, Sequence[Mapping[str, float]]]
"""What `measure` returned, of each seed."""


def by_prefills(figures: Mapping[str, float]) -> dict[int, float]:
    """Throughput by number of prefills."""
    return {int(name): rate for name, rate in figures.items() if name != LOOP}


def best_of(seeds: Sequence[Mapping[str, float]]) -> int:
    """The number of prefills with the highest throughput, in the mean over seeds."""
    rates = [by_prefills(figures) for figures in seeds]
    return max(rates[0], key=lambda n: statistics.fmean(each[n] for each in rates))


def _gain(seeds: Sequence[Mapping[str, float]], best: int, other: int) -> list[float]:
    rates = [by_prefills(figures) for figures in seeds]
    return [100 * (each[best] / each[other] - 1) for each in rates]


def claims(results: Results) -> list[Claim]:
    """The best ratio's gain over that of the mix before, and over each other one."""
    drifted, others, next_best = {}, {}, {}
    for setting, seeds in results.items():
        best = best_of(seeds)
        total = setting.instances
        here = f"{total} instances, {setting.mix} tokens, TTFT {setting.ttft:g} s"
        rates = [by_prefills(figures) for figures in seeds]
        usable = [n for n in rates[0] if n != best and all(each[n] > 0 for each in rates)]
        for n in usable:
            others[f"{here}, {n}:{total - n} for {best}:{total - best}"] = _gain(seeds, best, n)
        if usable:
            rival = max(usable, key=lambda n: statistics.fmean(each[n] for each in rates))
            next_best[f"{here}, {rival}:{total - rival} for {best}:{total - best}"] = _gain(
                seeds, best, rival
            )
        for mix in MIXES:
            past = results.get(Setting(total, mix, setting.ttft), [])
            if usable and past and mix != setting.mix and best_of(past) in (*usable, best):
                drifted[f"{here}, was {mix}"] = _gain(seeds, best, best_of(past))
    named = (
        ("the ratio that was best for the mix before", drifted), ("each other ratio", others),
        ("the second-best ratio", next_best),
    )  # fmt: skip
    return [
        Claim(f"throughput, best ratio over {name}", PAPER_GAIN, "%", points(found), 6.0)
        for name, found in named if found
    ]  # fmt: skip


def rows(results: Results) -> list[Row]:
    """The operator's loop must find a ratio about as good as the best one."""
    shares = []
    for seeds in results.values():
        best = best_of(seeds)
        for figures in seeds:
            rates = by_prefills(figures)
            if rates[best] > 0:
                shares.append(rates[int(figures[LOOP])] / rates[best])
    least, most = 100 * min(shares), 100 * max(shares)
    return [
        Row(f"throughput of the ratio that our loop finds, mean of {least:.0f} .. {most:.0f} %",
            100 * statistics.fmean(shares), "%", "best ratio", 100.0, 0.9, "higher",
            len(shares), most - least)
    ]  # fmt: skip
