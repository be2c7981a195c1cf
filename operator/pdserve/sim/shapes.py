"""Shapes of traffic, as data: what clients ask over time, and what goes wrong meanwhile.

All are for instances of llama2-70b on 8 H100 (`ratio.presets`), one P/D group, and start at the
size that their first minutes need. Rates are requests per second, times are seconds, lengths are
means of lognormal distributions in tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from pdserve.ratio.types import Bounds, Counts, Range
from pdserve.sim.arrivals import Arrivals, Times
from pdserve.terms import Slo

SLO = Slo(ttft=1.0, handoff=0.3, tpot=0.05, attainment=0.99)
BOUNDS = Bounds(Range(1, 1), Range(1, 40), Range(1, 40))
PREFILL_SLOTS, DECODE_SLOTS = 4, 64
TIDE_STEP = 30.0


@dataclass(frozen=True, slots=True)
class Mix:
    """Mean lengths from a moment on."""

    since: float
    prompt: float
    output: float
    hit: float = 0.0
    """Share of each prompt that its prefill need not compute, 0 to 1."""


CHAT = (Mix(0.0, 1200.0, 200.0),)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that happens to one instance."""

    at: float
    role: str
    """prefill or decode: its instance that has served longest."""
    slow: float | None = None
    """Factor on its times; None: it is lost, and replaced after the cold start."""


@dataclass(frozen=True, slots=True)
class TrafficShape:
    """One experiment's world; policies are compared on it."""

    name: str
    points: tuple[tuple[float, float], ...]
    """Time and rate, linear in between; two of one time are a step."""
    duration: float
    start: Counts
    """Counts that serve from the start."""
    mixes: tuple[Mix, ...] = CHAT
    note: str = ""
    spread: float = 0.5
    """Sigma of the logarithm of lengths."""
    slo: Slo = SLO
    bounds: Bounds = BOUNDS
    cold_start: float = 60.0
    delay: float = 0.0
    """Seconds by which scraped samples come late."""
    outage: tuple[float, float] | None = None
    """From and until when the metrics server answers nothing."""
    budget: int | None = None
    """Instances of both roles together at most; each has 8 devices."""
    faults: tuple[Fault, ...] = ()
    hopeless: float = 0.0
    """Share of prompts that are far too long for TTFT, 0 to 1."""
    recorded: Arrivals | None = field(default=None, repr=False)
    """Recorded requests, in place of drawn ones."""

    def rate(self, times: Times) -> Times:
        """Requests per second at each time."""
        at = np.array([point[0] for point in self.points])
        rates = np.array([point[1] for point in self.points])
        found = np.clip(np.searchsorted(at, times, side="right") - 1, 0, len(at) - 2)
        width = at[found + 1] - at[found]
        share = np.clip((times - at[found]) / np.where(width > 0, width, 1.0), 0.0, 1.0)
        return np.asarray(rates[found] + share * (rates[found + 1] - rates[found]))

    def highest_rate(self, start: float, end: float) -> float:
        """The highest rate between two times."""
        inside = [rate for at, rate in self.points if start <= at <= end]
        ends = self.rate(np.array([start, math.nextafter(end, start)]))
        return max([*inside, *(float(rate) for rate in ends)])

    def means(self, times: Times) -> tuple[Times, Times, Times]:
        """Mean prompt tokens, share of prefix hits, and mean output tokens at each time."""
        since = np.array([mix.since for mix in self.mixes])
        which = np.searchsorted(since, times, side="right") - 1
        columns = np.array([(m.prompt, m.hit, m.output) for m in self.mixes])
        prompt, hit, output = columns[which].T
        return prompt, hit, output


def _steps(*levels: tuple[float, float], until: float) -> tuple[tuple[float, float], ...]:
    """Points of a rate that is constant from each time on."""
    points: list[tuple[float, float]] = []
    ends = [at for at, _ in levels[1:]] + [until]
    for (at, rate), end in zip(levels, ends, strict=True):
        points += [(at, rate), (end, rate)]
    return tuple(points)


def _tide() -> tuple[tuple[float, float], ...]:
    times = np.arange(0.0, 10_800.0 + TIDE_STEP, TIDE_STEP)
    return tuple((float(t), 3 + 13.5 * (1 - math.cos(2 * math.pi * t / 10_800))) for t in times)


_CONSTANT = TrafficShape("constant", _steps((0, 20), until=3600), 3600, Counts(1, 3, 5), note="20")
_STEP_X2 = TrafficShape(
    "step_x2", _steps((0, 15), (1200, 30), until=5400), 5400, Counts(1, 2, 4), note="15 -> 30"
)
_RAMP = TrafficShape(
    "ramp", ((0, 8), (900, 8), (3900, 32), (5100, 32)), 5100, Counts(1, 2, 3), note="8 -> 32"
)

DRAWN: Mapping[str, TrafficShape] = {
    shape.name: shape
    for shape in (
        _CONSTANT,
        _STEP_X2,
        TrafficShape(
            "step_half", _steps((0, 30), (1200, 15), until=5400), 5400, Counts(1, 4, 8),
            note="30 -> 15",
        ),
        _RAMP,
        TrafficShape(
            "spike", _steps((0, 12), (1200, 36), (1380, 12), until=4200), 4200, Counts(1, 2, 4),
            note="36 for 3 minutes, else 12",
        ),
        TrafficShape(
            "square", _steps(*((900 * k, 28 if k % 2 else 12) for k in range(6)), until=5400),
            5400, Counts(1, 2, 4), note="12 and 28 by turns of 15 minutes",
        ),
        TrafficShape(
            "mixshift", _steps((0, 10), until=6000), 6000, Counts(1, 4, 2),
            mixes=(Mix(0, 3000, 80), Mix(2000, 600, 400), Mix(4000, 3000, 80)),
            note="3,000/80 tokens; 600/400 in the middle third",
        ),
        TrafficShape("tide", _tide(), 10_800, Counts(1, 1, 1), note="a day in 3 h, 3 to 30"),
        TrafficShape(
            "prefix_drop", _steps((0, 12), until=4200), 4200, Counts(1, 1, 4),
            mixes=(Mix(0, 2400, 150, 0.7), Mix(1500, 2400, 150, 0.0)),
            note="prefix hits 70 %, from 1,500 s on none",
        ),
        replace(_STEP_X2, name="slow_cold", cold_start=300.0, note="step_x2, cold start 300 s"),
        replace(_RAMP, name="slow_cold_ramp", cold_start=300.0, note="ramp, cold start 300 s"),
        replace(_STEP_X2, name="delayed", delay=30.0, note="step_x2, metrics 30 s late"),
        replace(
            _STEP_X2, name="outage", outage=(1000.0, 1780.0),
            note="step_x2, no metrics for 13 minutes over the step",
        ),
        replace(
            _CONSTANT, name="slow_decode", faults=(Fault(600.0, "decode", slow=1.6),),
            note="20, and one decode becomes 1.6 times as slow",
        ),
        replace(
            _CONSTANT, name="losses", faults=(Fault(600.0, "prefill"), Fault(1800.0, "decode")),
            note="20, a prefill and a decode are lost and replaced",
        ),
        replace(
            _CONSTANT, name="hopeless", hopeless=0.039,
            note="20, of which 3.9 % of prompts can never meet TTFT",
        ),
        replace(_STEP_X2, name="shortage", budget=6, note="step_x2, 6 instances at most"),
    )
}  # fmt: skip
"""Shapes whose requests are drawn; `traces` adds those that are read from files."""
FIRST_13 = (
    "constant", "step_x2", "step_half", "ramp", "spike", "square", "mixshift", "tide",
    "prefix_drop", "azure_x5", "mooncake_x2", "slow_cold", "slow_cold_ramp",
)  # fmt: skip
"""Shapes of the table that compares policies."""
