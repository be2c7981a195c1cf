"""A metrics source for schedules: with healthy or false values.

Healthy values keep every scenario at its counts. False values are such as no healthy Prometheus
has: NaN, infinite or negative sums, sums that overflow, old samples, missing gateways.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace

from pdserve.dst import values
from pdserve.ratio.types import (
    DecodeWindow,
    PrefillWindow,
    RequestWindow,
    ScenarioSample,
    Unknown,
)
from pdserve.telemetry.source import LiveInstances, ScenarioKey
from pdserve.terms.json import JsonObject

RATE = 2.0
"""Requests per second that every scenario has."""


class SimulatedMetrics:
    """`MetricsSource`; `spoil` changes the sample of every scenario while it is set."""

    def __init__(self, wall: Callable[[], float]) -> None:
        """`wall` is the metrics server's clock in seconds since the epoch."""
        self._wall = wall
        self.spoil: Callable[[ScenarioSample], ScenarioSample | Unknown] | None = None

    async def sample(
        self, live: Mapping[ScenarioKey, LiveInstances]
    ) -> Mapping[ScenarioKey, ScenarioSample | Unknown]:
        """The same for all scenarios."""
        healthy = healthy_sample(self._wall())
        said = healthy if self.spoil is None else self.spoil(healthy)
        return dict.fromkeys(live, said)

    async def close(self) -> None:
        """Nothing is held."""


def healthy_sample(at: float) -> ScenarioSample:
    """A sample in which all requests met their SLO, at a moderate load.

    `at`: seconds since the epoch.
    """
    windows = tuple(_window(seconds) for seconds in (60.0, 180.0, 600.0))
    n = RATE * 60.0
    return ScenarioSample(
        at=at,
        age=3.0,
        windows=windows,
        prefill=PrefillWindow(1, n, n, n * 0.05, n * 100, n * 100**2, 0.0, n * 0.02, n),
        decode=DecodeWindow(1, 3000.0, 60.0, 6000.0, 6000.0 * 125),
        decode_overload=0.0,
        expired=0.0,
        failed=0.0,
        waiting=0.0,
        ttft_seconds=0.1,
        live=3,
    )


def spoiling(rng: random.Random) -> Callable[[ScenarioSample], ScenarioSample | Unknown]:
    """One kind of false values, drawn once and kept."""
    if rng.random() < 0.15:
        return lambda _sample: Unknown("no answer")
    if rng.random() < 0.2:
        return lambda sample: replace(sample, age=3600.0, at=sample.at - 3600.0)
    # A count between 0 and 1 reads as none at all, which may well be true.
    broken = rng.choice([number for number in values.NUMBERS if not 0 <= number < 1])
    fields = [f for f in ("offered", "met", "ttft_met", "completed", "prompt_tokens")
              if rng.random() < 0.6] or ["offered"]  # fmt: skip

    def changed(sample: ScenarioSample) -> ScenarioSample:
        over: JsonObject = dict.fromkeys(fields, broken)
        return replace(sample, windows=tuple(replace(w, **over) for w in sample.windows))

    return changed


def _window(seconds: float) -> RequestWindow:
    n = RATE * seconds
    return RequestWindow(
        seconds=seconds,
        scrapes=seconds / 5.0,
        offered=n,
        met=n,
        ttft_met=n,
        completed=n,
        prompt_tokens=n * 100,
        output_tokens=n * 50,
        cached_tokens=0.0,
    )
