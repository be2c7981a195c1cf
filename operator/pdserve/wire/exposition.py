"""Prometheus text exposition for the data plane: counters, gauges, histograms, nothing else.

Gateway and engine must stay small and fast and may not import the operator's code, so they share
these few lines instead of a client library. Updating a series is one dict write on the event
loop; there are no locks, so only one thread may touch a registry. Format: Prometheus text 0.0.4.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
"""Default histogram bounds for latencies, in seconds."""


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _labels(names: Sequence[str], values: Sequence[str], extra: str = "") -> str:
    parts = [f'{n}="{_escape(v)}"' for n, v in zip(names, values, strict=True)]
    if extra:
        parts.append(extra)
    return "{" + ",".join(parts) + "}" if parts else ""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


class Metric:
    """A counter or gauge family; label values are positional, in the order of `labels`."""

    def __init__(self, kind: str, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self.kind, self.name, self.text, self.labels = kind, name, text, tuple(labels)
        self.values: dict[tuple[str, ...], float] = {}
        if not self.labels:
            self.values[()] = 0.0

    def inc(self, amount: float = 1.0, *labels: str) -> None:
        """Add to one series, created at zero on first use."""
        self.values[labels] = self.values.get(labels, 0.0) + amount

    def set(self, value: float, *labels: str) -> None:
        """Replace the value of one series."""
        self.values[labels] = value

    def get(self, *labels: str) -> float:
        """Current value of one series (0 when it does not exist)."""
        return self.values.get(labels, 0.0)

    def remove(self, *labels: str) -> None:
        """Forget one series, e.g. of an instance that is gone."""
        self.values.pop(labels, None)

    def lines(self) -> Iterator[str]:
        """Sample lines of this family."""
        for key, value in self.values.items():
            yield f"{self.name}{_labels(self.labels, key)} {_number(value)}"


class Histogram:
    """A histogram family with fixed upper bounds (le), in the unit its name says."""

    kind = "histogram"

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str] = (),
        buckets: Sequence[float] = SECONDS_BUCKETS,
    ) -> None:
        self.name, self.text, self.labels = name, text, tuple(labels)
        self.buckets = tuple(buckets)
        self.series: dict[tuple[str, ...], list[float]] = {}
        self._bounds: dict[tuple[str, ...], tuple[float, ...]] = {}
        if not self.labels:
            self.create()

    def create(self, *labels: str, buckets: Sequence[float] | None = None) -> None:
        """Make a series at zero if it does not exist, with bounds of its own if given."""
        if labels not in self.series:
            bounds = self._bounds[labels] = self.buckets if buckets is None else tuple(buckets)
            self.series[labels] = [0.0] * (len(bounds) + 2)

    def observe(self, value: float, *labels: str) -> None:
        """Count one observation; the last list element is the sum."""
        row = self.series.get(labels)
        if row is None:
            self.create(*labels)
            row = self.series[labels]
        row[bisect_left(self._bounds[labels], value)] += 1
        row[-1] += value

    def lines(self) -> Iterator[str]:
        """Cumulative bucket, sum and count lines of this family."""
        for key, row in self.series.items():
            total = 0.0
            for bound, count in zip((*self._bounds[key], float("inf")), row, strict=False):
                total += count
                le = "+Inf" if bound == float("inf") else repr(float(bound))
                labels = _labels(self.labels, key, f'le="{le}"')
                yield f"{self.name}_bucket{labels} {_number(total)}"
            labels = _labels(self.labels, key)
            yield f"{self.name}_sum{labels} {_number(row[-1])}"
            yield f"{self.name}_count{labels} {_number(total)}"


_Family = TypeVar("_Family", Metric, Histogram)


class Registry:
    """All families of one process, rendered in registration order."""

    def __init__(self) -> None:
        self._families: dict[str, Metric | Histogram] = {}

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Metric:
        """Register a counter; its name says its unit and ends in `_total`."""
        return self._add(Metric("counter", name, text, labels))

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Metric:
        """Register a gauge."""
        return self._add(Metric("gauge", name, text, labels))

    def histogram(
        self,
        name: str,
        text: str,
        labels: Sequence[str] = (),
        buckets: Sequence[float] = SECONDS_BUCKETS,
    ) -> Histogram:
        """Register a histogram."""
        return self._add(Histogram(name, text, labels, buckets))

    def _add(self, family: _Family) -> _Family:
        if family.name in self._families:
            raise ValueError(f"metric {family.name} registered twice")
        self._families[family.name] = family
        return family

    def render(self) -> bytes:
        """The exposition document."""
        lines: list[str] = []
        for family in self._families.values():
            lines += _head(family.name, family.kind, family.text)
            lines.extend(family.lines())
        return ("\n".join(lines) + "\n").encode()


def _head(name: str, kind: str, text: str) -> Iterable[str]:
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n")
    return (f"# HELP {name} {escaped}", f"# TYPE {name} {kind}")
