"""Prometheus metrics in the text format 0.0.4, with the standard library alone.

Every process of the project uses it: operator, gateway, engine. Names and meanings are with their
users (`pdserve.wire.metrics`, or beside the code that counts). `httpd` serves `Registry.render`.

Not thread-safe: one event loop owns a registry. Histograms have fixed buckets, no exemplars, no
timestamps; that is all a scrape needs.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from math import inf, isnan
from typing import Generic, TypeVar

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DEFAULT_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
"""Seconds; for latencies between a millisecond and a minute."""

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*\Z")


class MetricError(ValueError):
    """A metric was declared or used against its declaration."""


def _number(value: float) -> str:
    if value == inf:
        return "+Inf"
    if value == -inf:
        return "-Inf"
    if isnan(value):
        return "NaN"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _pairs(names: Sequence[str], values: Sequence[str]) -> str:
    return ",".join(f'{n}="{_escape(v)}"' for n, v in zip(names, values, strict=True))


class CounterValue:
    """One series of a counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Add `amount` >= 0."""
        if not amount >= 0:
            raise MetricError(f"a counter cannot grow by {amount}")
        self.value += amount


class GaugeValue:
    """One series of a gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def set(self, value: float) -> None:
        """Set to `value`."""
        self.value = float(value)

    def inc(self, amount: float = 1.0) -> None:
        """Add `amount` (may be negative)."""
        self.value += amount

    def dec(self, amount: float = 1.0) -> None:
        """Subtract `amount`."""
        self.value -= amount


class HistogramValue:
    """One series of a histogram; `counts` are per bucket, made cumulative when rendered."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation (NaN is refused: it would poison the sum for good)."""
        if isnan(value):
            raise MetricError("a histogram cannot observe NaN")
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """Observations so far."""
        return sum(self.counts)


V = TypeVar("V", CounterValue, GaugeValue, HistogramValue)


class Family(Generic[V]):
    """One metric name with its series, one per combination of label values."""

    kind = "untyped"

    def __init__(self, name: str, help_text: str, labels: Sequence[str]) -> None:
        if not _NAME.match(name):
            raise MetricError(f"metric name {name!r}: want letters, digits, '_' or ':'")
        for label in labels:
            if not _LABEL.match(label) or label == "le":
                raise MetricError(f"metric {name}: label {label!r} is not a usable label name")
        if not help_text.strip():
            raise MetricError(f"metric {name}: a help text is required")
        self.name = name
        self.help = help_text
        self.label_names = tuple(labels)
        self._series: dict[tuple[str, ...], V] = {}

    def _new(self) -> V:
        raise NotImplementedError

    def labels(self, *values: str, **named: str) -> V:
        """The series of these label values (in declared order, or all by name); kept for reuse."""
        if named:
            if values or set(named) != set(self.label_names):
                raise MetricError(f"{self.name}: labels {sorted(named)}, want {self.label_names}")
            values = tuple(named[label] for label in self.label_names)
        series = self._series.get(values)
        if series is None:
            if len(values) != len(self.label_names):
                raise MetricError(f"{self.name}: {len(values)} values for {self.label_names}")
            series = self._series[values] = self._new()
        return series

    def remove(self, *values: str) -> None:
        """Stop exposing one series (its subject is gone); unknown ones are ignored."""
        self._series.pop(values, None)

    def clear(self) -> None:
        """Stop exposing every series."""
        self._series.clear()

    def _lines(self, values: tuple[str, ...], series: V) -> Iterable[str]:
        raise NotImplementedError

    def render(self) -> Iterable[str]:
        """Lines of the exposition, series sorted by label values."""
        text = self.help.replace("\\", r"\\").replace("\n", r"\n")
        yield f"# HELP {self.name} {text}"
        yield f"# TYPE {self.name} {self.kind}"
        for values in sorted(self._series):
            yield from self._lines(values, self._series[values])


class _Scalar(Family[V]):
    def _lines(self, values: tuple[str, ...], series: V) -> Iterable[str]:
        pairs = _pairs(self.label_names, values)
        assert not isinstance(series, HistogramValue)  # noqa: S101 - narrows the type only
        yield (
            f"{self.name}{{{pairs}}} {_number(series.value)}"
            if pairs
            else (f"{self.name} {_number(series.value)}")
        )


class Counter(_Scalar[CounterValue]):
    """A count that only rises. Without labels, `inc` works on the family itself."""

    kind = "counter"

    def _new(self) -> CounterValue:
        return CounterValue()

    def inc(self, amount: float = 1.0) -> None:
        """Add to the series without labels."""
        self.labels().inc(amount)


class Gauge(_Scalar[GaugeValue]):
    """A value that goes up and down. Without labels, `set` works on the family itself."""

    kind = "gauge"

    def _new(self) -> GaugeValue:
        return GaugeValue()

    def set(self, value: float) -> None:
        """Set the series without labels."""
        self.labels().set(value)


class Histogram(Family[HistogramValue]):
    """A distribution over fixed, rising upper bounds (`+Inf` is added)."""

    kind = "histogram"

    def __init__(
        self, name: str, help_text: str, labels: Sequence[str], buckets: Sequence[float]
    ) -> None:
        super().__init__(name, help_text, labels)
        bounds = tuple(float(b) for b in buckets if b != inf)
        if not bounds or any(a >= b for a, b in pairwise(bounds)):
            raise MetricError(f"{name}: buckets {buckets} must rise and not be empty")
        self.bounds = bounds

    def _new(self) -> HistogramValue:
        return HistogramValue(self.bounds)

    def observe(self, value: float) -> None:
        """Observe on the series without labels."""
        self.labels().observe(value)

    def _lines(self, values: tuple[str, ...], series: HistogramValue) -> Iterable[str]:
        pairs = _pairs(self.label_names, values)
        prefix = f"{pairs}," if pairs else ""
        total = 0
        for bound, count in zip((*self.bounds, inf), series.counts, strict=True):
            total += count
            yield f'{self.name}_bucket{{{prefix}le="{_number(bound)}"}} {total}'
        braces = f"{{{pairs}}}" if pairs else ""
        yield f"{self.name}_sum{braces} {_number(series.sum)}"
        yield f"{self.name}_count{braces} {total}"


F = TypeVar("F", Counter, Gauge, Histogram)


class Registry:
    """The metrics of one process. Declaring a name twice alike gives the same metric."""

    def __init__(self) -> None:
        self._families: dict[str, Counter | Gauge | Histogram] = {}
        self._hooks: list[Callable[[], None]] = []

    def counter(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Counter:
        """Declare a counter; one without labels is exposed as 0 from the start."""
        return self._add(Counter(name, help_text, labels))

    def gauge(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Gauge:
        """Declare a gauge; one without labels is exposed as 0 from the start."""
        return self._add(Gauge(name, help_text, labels))

    def histogram(
        self,
        name: str,
        help_text: str,
        labels: Sequence[str] = (),
        buckets: Sequence[float] = DEFAULT_BUCKETS,
    ) -> Histogram:
        """Declare a histogram with these upper bounds."""
        return self._add(Histogram(name, help_text, labels, buckets))

    def _add(self, family: F) -> F:
        known = self._families.get(family.name)
        if known is not None:
            same = (
                type(known) is type(family)
                and known.help == family.help
                and known.label_names == family.label_names
                and getattr(known, "bounds", ()) == getattr(family, "bounds", ())
            )
            if not same:
                raise MetricError(f"metric {family.name} is already declared differently")
            return known  # type: ignore[return-value]  # `same` proved the type
        self._families[family.name] = family
        if not family.label_names:
            family.labels()
        return family

    def on_collect(self, hook: Callable[[], None]) -> None:
        """Call `hook` before each exposition, for gauges computed on demand."""
        self._hooks.append(hook)

    def render(self) -> str:
        """The whole exposition, metrics sorted by name."""
        for hook in self._hooks:
            hook()
        lines = [line for name in sorted(self._families) for line in self._families[name].render()]
        return "\n".join(lines) + "\n" if lines else ""

    def value(self, name: str, *labels: str) -> float:
        """Current value of a counter or gauge series (a histogram's count); 0 when never touched.

        For tests and status pages; raises KeyError for an undeclared name.
        """
        for hook in self._hooks:
            hook()
        series = self._families[name]._series.get(labels)
        if series is None:
            return 0.0
        return float(series.count if isinstance(series, HistogramValue) else series.value)
