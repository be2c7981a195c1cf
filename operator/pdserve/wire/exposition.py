"""Counters, gauges and histograms in the Prometheus text format.

The gateway and the engine count on their hot paths, so a labelled series is looked up once and
then incremented as a plain attribute; no locks (one event loop per process), no global registry,
no background thread. Names come from `wire.metrics`; serving the text over HTTP is the caller's.
The operator has its own in `kube.metrics` (that package may not know this one).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Value:
    """One counter or gauge series."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Add `amount`."""
        self.value += amount

    def dec(self, amount: float = 1.0) -> None:
        """Subtract `amount` (gauges)."""
        self.value -= amount

    def set(self, value: float) -> None:
        """Replace the value (gauges)."""
        self.value = value


class Distribution:
    """One histogram series over fixed upper bounds (+Inf is implied)."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one observation; a value equal to a bound belongs to it (`le`)."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """Observations so far."""
        return sum(self.counts)


class _Family:
    """A metric name with its help text, label names and series."""

    kind = "untyped"

    def __init__(self, name: str, help_text: str, labels: Sequence[str]) -> None:
        self.name = name
        self.help = help_text
        self.label_names = tuple(labels)

    def _key(self, values: tuple[str, ...]) -> tuple[str, ...]:
        if len(values) != len(self.label_names):
            raise ValueError(
                f"{self.name}: labels {self.label_names} need {len(self.label_names)} "
                f"values, got {values!r}"
            )
        return values

    def lines(self) -> Iterator[str]:
        """Sample lines of every series."""
        raise NotImplementedError


class _ValueFamily(_Family):
    def __init__(self, name: str, help_text: str, labels: Sequence[str] = ()) -> None:
        super().__init__(name, help_text, labels)
        self._series: dict[tuple[str, ...], Value] = {}
        if not self.label_names:
            self.labels()

    def labels(self, *values: str) -> Value:
        """The series with these label values, made (at zero) on first use."""
        series = self._series.get(values)
        if series is None:
            series = self._series[self._key(values)] = Value()
        return series

    def remove(self, *values: str) -> None:
        """Forget one series (an instance that is gone)."""
        self._series.pop(values, None)

    def remove_where(self, label: str, keep: Callable[[str], bool]) -> None:
        """Forget every series whose value of `label` is no longer wanted."""
        position = self.label_names.index(label)
        for values in [v for v in self._series if not keep(v[position])]:
            del self._series[values]

    def inc(self, amount: float = 1.0) -> None:
        """`labels().inc(...)`, for metrics without labels."""
        self.labels().inc(amount)

    def lines(self) -> Iterator[str]:
        """Sample lines of every series."""
        for values, series in self._series.items():
            yield f"{self.name}{_labels(self.label_names, values)} {_number(series.value)}"


class Counter(_ValueFamily):
    """A value that only rises while the process lives."""

    kind = "counter"


class Gauge(_ValueFamily):
    """A value that goes up and down."""

    kind = "gauge"

    def set(self, value: float) -> None:
        """`labels().set(...)`, for metrics without labels."""
        self.labels().set(value)


class Histogram(_Family):
    """Observations counted into buckets, with their sum."""

    kind = "histogram"

    def __init__(
        self, name: str, help_text: str, labels: Sequence[str], buckets: Sequence[float]
    ) -> None:
        super().__init__(name, help_text, labels)
        if not buckets or list(buckets) != sorted(set(buckets)):
            raise ValueError(f"{name}: buckets must rise strictly, got {list(buckets)!r}")
        self.buckets = tuple(float(b) for b in buckets)
        self._series: dict[tuple[str, ...], Distribution] = {}

    def labels(self, *values: str, buckets: Sequence[float] | None = None) -> Distribution:
        """The series with these label values; its own `buckets` only when it is made now."""
        series = self._series.get(values)
        if series is None:
            bounds = self.buckets if buckets is None else tuple(float(b) for b in buckets)
            series = self._series[self._key(values)] = Distribution(bounds)
        return series

    def lines(self) -> Iterator[str]:
        """Sample lines of every series."""
        names = (*self.label_names, "le")
        for values, series in self._series.items():
            running = 0
            for bound, count in zip((*series.bounds, None), series.counts, strict=True):
                running += count
                le = "+Inf" if bound is None else _number(bound)
                yield f"{self.name}_bucket{_labels(names, (*values, le))} {running}"
            plain = _labels(self.label_names, values)
            yield f"{self.name}_sum{plain} {_number(series.total)}"
            yield f"{self.name}_count{plain} {running}"


F = TypeVar("F", bound=_Family)


class Registry:
    """The metrics of one process, in the order they were declared."""

    def __init__(self) -> None:
        self._families: dict[str, _Family] = {}

    def counter(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Counter:
        """Declare a counter."""
        return self._add(Counter(name, help_text, labels))

    def gauge(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Gauge:
        """Declare a gauge."""
        return self._add(Gauge(name, help_text, labels))

    def histogram(
        self, name: str, help_text: str, labels: Sequence[str], buckets: Sequence[float]
    ) -> Histogram:
        """Declare a histogram with strictly rising upper bounds."""
        return self._add(Histogram(name, help_text, labels, buckets))

    def _add(self, family: F) -> F:
        if family.name in self._families:
            raise ValueError(f"metric {family.name} is declared twice")
        self._families[family.name] = family
        return family

    def render(self) -> bytes:
        """All series as one scrape answer."""
        out: list[str] = []
        for family in self._families.values():
            out.append(f"# HELP {family.name} {_help(family.help)}")
            out.append(f"# TYPE {family.name} {family.kind}")
            out.extend(family.lines())
        return ("\n".join(out) + "\n").encode()


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    if not names:
        return ""
    pairs = ",".join(f'{n}="{_escape(v)}"' for n, v in zip(names, values, strict=True))
    return "{" + pairs + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _help(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\")


def _number(value: float) -> str:
    if value != value or value in (float("inf"), float("-inf")):
        return {"inf": "+Inf", "-inf": "-Inf"}.get(repr(value), "NaN")
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
