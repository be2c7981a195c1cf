"""The plant's counters as a Prometheus would scrape and answer them.

Every `interval` seconds all pods that exist are scraped at once, under the metric names that they
have in production. `answers` evaluates what one round of the ratio loop asks
(`telemetry.promql.queries`) at a moment: `increase()` with Prometheus' own extrapolation, ages,
latest values, numbers of samples. Samples may come late, and the server may be away for a while.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pdserve.ratio.types import ScenarioSample, Unknown
from pdserve.sim.plant import InstanceView, ScenarioPlant
from pdserve.sim.series_names import GATEWAY_COUNTERS, LOAD, ROLE_COUNTERS, RUNNING, WAITING
from pdserve.telemetry.assemble import Answers, assemble
from pdserve.telemetry.promql import (
    GATEWAY_SHORTEST,
    RECENT,
    RECENT_ENGINE,
    RECENT_GATEWAY,
    WINDOWED,
    Rows,
    SeriesKey,
)
from pdserve.telemetry.source import LiveInstances, ScenarioKey
from pdserve.wire import metrics

KEY = ScenarioKey("sim", "shop", "chat")
GATEWAY = "gateway-0"
SETTLE = 1.0
"""Seconds that evaluations lie in the past (`telemetry.prometheus.SETTLE_SECONDS`)."""
WINDOWS = (60.0, 180.0, 600.0)
STALE_AFTER = 60.0


@dataclass(slots=True)
class _Pod:
    """Samples of one pod, oldest first: times, and values by series."""

    times: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, at: float, values: Mapping[str, float]) -> None:
        self.times.append(at)
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def forget_before(self, at: float) -> None:
        old = bisect_left(self.times, at)
        if old > 256:
            del self.times[:old]
            for column in self.values.values():
                del column[:old]


class VirtualPrometheus:
    """Scrapes one plant. Times are the plant's."""

    def __init__(
        self, interval: float, delay: float = 0.0, outage: tuple[float, float] | None = None
    ) -> None:
        """`delay`: seconds after which a sample can be read. `outage`: from and until when nothing
        answers.
        """
        self.interval = interval
        self._delay = delay
        self._outage = outage
        self._pods: dict[str, _Pod] = {}
        self._shift = 0.0

    def scrape(self, plant: ScenarioPlant) -> None:
        """Take a sample of the gateway and of every instance that serves or drains."""
        self._pods.setdefault(GATEWAY, _Pod()).add(plant.now, _gateway_sample(plant))
        for instance in plant.instances():
            if instance.ready or instance.draining:
                pod = self._pods.setdefault(instance.name, _Pod())
                pod.add(plant.now, _engine_sample(plant, instance))
        oldest = plant.now - max(WINDOWS) - self._delay - 2 * self.interval
        for name in [n for n, pod in self._pods.items() if pod.times[-1] < oldest]:
            del self._pods[name]
        for pod in self._pods.values():
            pod.forget_before(oldest)

    def away(self, now: float) -> bool:
        """Whether the server answers nothing at this time."""
        return self._outage is not None and self._outage[0] <= now < self._outage[1]

    def sample(self, plant: ScenarioPlant, window: float) -> ScenarioSample | Unknown:
        """What the ratio loop reads at the plant's present moment.

        `window`: seconds for which an instance must have served before its series count.
        """
        if self.away(plant.now):
            return Unknown("the metrics server does not answer")
        live = live_instances(plant, window)
        return assemble(KEY, live, self.answers(plant.now - SETTLE))

    def answers(self, at: float) -> Answers:
        """Rows of every query of a round asked at `at`, as of the newest sample before it."""
        age = self._ages([GATEWAY], at).get(_key(GATEWAY), 0.0)
        self._shift = shift = age if age <= STALE_AFTER else 0.0
        at -= shift
        rows: dict[str, Rows | Unknown] = {
            "gateway_age": self._ages([GATEWAY], at),
            "engine_age": self._ages([p for p in self._pods if p != GATEWAY], at),
            "waiting": _one(self.latest(GATEWAY, WAITING, at)),
        }
        for index, seconds in enumerate(WINDOWS):
            rows[f"scrapes@{index}"] = _one(float(self._inside(GATEWAY, at, seconds)))
            for name, metric in WINDOWED.items():
                rows[f"{name}@{index}"] = _one(self.increase(GATEWAY, metric, at, seconds))
        for name, (metric, labels) in GATEWAY_SHORTEST.items():
            series = series_name(metric, labels)
            rows[name] = _one(self.increase(GATEWAY, series, at, WINDOWS[0]))
        engines = [name for name in self._pods if name != GATEWAY]
        for name, metric in metrics.ENGINE_SERIES.items():
            if name != metrics.ALIVE:
                rows[name] = {
                    _key(pod): value
                    for pod in engines
                    if (value := self.increase(pod, metric, at, WINDOWS[0])) is not None
                }
        rows.update(self._recent(at))
        self._shift = 0.0
        return Answers(at, SETTLE + shift, WINDOWS, STALE_AFTER, rows, shift)

    def _recent(self, at: float) -> dict[str, Rows | Unknown]:
        """Rows of `telemetry.promql`'s queries over a part of the shortest window."""
        seconds = WINDOWS[0] * RECENT
        rows: dict[str, Rows | Unknown] = {}
        for name, metric in RECENT_GATEWAY.items():
            rows[name] = _one(self.increase(GATEWAY, metric, at, seconds))
        for name, quantity in RECENT_ENGINE.items():
            rows[name] = {
                _key(pod): value
                for pod in self._pods
                if pod != GATEWAY
                and (v := self.increase(pod, metrics.ENGINE_SERIES[quantity], at, seconds))
                is not None
                for value in (v,)
            }
        return rows

    # --- PromQL's functions -------------------------------------------------------------------

    def increase(self, pod: str, series: str, at: float, seconds: float) -> float | None:
        """`increase(series[seconds])` at `at`; None with fewer than two samples.

        Extrapolates to the ends of the window as Prometheus does: by at most half an interval
        where the first or last sample is further than 1.1 intervals from it, and never below zero.
        """
        found = self._pods.get(pod)
        column = None if found is None else found.values.get(series)
        if found is None or column is None:
            return None
        first, last = self._range(found, at, seconds)
        if last - first < 2:
            return None
        times, values = found.times[first:last], column[first:last]
        total = values[-1] - values[0]
        span = times[-1] - times[0]
        average = span / (len(times) - 1)
        before, after = times[0] - (at - seconds), at - times[-1]
        if before >= 1.1 * average:
            before = average / 2
        if total > 0 and values[0] >= 0:
            before = min(before, span * values[0] / total)
        if after >= 1.1 * average:
            after = average / 2
        return total * (span + before + after) / span

    def latest(self, pod: str, series: str, at: float) -> float | None:
        """The newest value of a series within five minutes before `at`."""
        found = self._pods.get(pod)
        if found is None or series not in found.values:
            return None
        last = bisect_right(found.times, self._visible(at))
        if last == 0 or found.times[last - 1] < at - 300.0:
            return None
        return found.values[series][last - 1]

    def _range(self, pod: _Pod, at: float, seconds: float) -> tuple[int, int]:
        """Samples in (at - seconds, at] that can be read by now."""
        first = bisect_right(pod.times, at - seconds)
        return first, max(first, bisect_right(pod.times, self._visible(at)))

    def _visible(self, at: float) -> float:
        """Time of the newest sample that can be read in an evaluation at `at`."""
        return min(at, at + self._shift - self._delay)

    def _inside(self, pod: str, at: float, seconds: float) -> int:
        found = self._pods.get(pod)
        if found is None:
            return 0
        first, last = self._range(found, at, seconds)
        return last - first

    def _ages(self, pods: Iterable[str], at: float) -> Rows:
        rows: Rows = {}
        for name in pods:
            times = self._pods[name].times if name in self._pods else []
            last = bisect_right(times, self._visible(at))
            if last and times[last - 1] >= at - 300.0:
                rows[_key(name)] = at - times[last - 1]
        return rows


def live_instances(plant: ScenarioPlant, window: float) -> LiveInstances:
    """Pods whose series count: those that have served for a whole window."""
    warm = [
        i
        for i in plant.instances()
        if i.ready and not i.draining and i.ready_since <= plant.now - window
    ]
    return LiveInstances(
        gateways=frozenset({GATEWAY}),
        prefill=frozenset(i.name for i in warm if i.role == "prefill"),
        decode=frozenset(i.name for i in warm if i.role == "decode"),
    )


def series_name(metric: str, labels: Mapping[str, str]) -> str:
    """One series' name: the metric, and its labels but for those that say whose it is."""
    inside = ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()))
    return f"{metric}{{{inside}}}" if inside else metric


def _key(pod: str) -> SeriesKey:
    return SeriesKey(*KEY, pod)


def _one(value: float | None) -> Rows:
    return {} if value is None else {_key(GATEWAY): value}


def _gateway_sample(plant: ScenarioPlant) -> dict[str, float]:
    counters = plant.gateway()
    found = {name: counters[index] for name, index in GATEWAY_COUNTERS.items()}
    found[WAITING] = float(plant.waiting)
    return found


def _engine_sample(plant: ScenarioPlant, instance: InstanceView) -> dict[str, float]:
    counters = plant.engine(instance)
    found = {name: counters[index] for name, index in ROLE_COUNTERS[instance.role].items()}
    found[LOAD], found[RUNNING] = float(instance.load), float(instance.running)
    return found
