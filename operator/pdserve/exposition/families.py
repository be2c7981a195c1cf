"""A metric name with its series, one per combination of label values.

`labels` looks a series up or makes it at zero; a caller that counts often keeps what it returns. A
metric without labels has one series, reached by `labels()` or by the methods of the family.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import pairwise
from math import inf
from typing import ClassVar, Generic, TypeVar

from pdserve.exposition import exposition_text
from pdserve.exposition.exposition_text import MetricError
from pdserve.exposition.series import CounterSeries, GaugeSeries, HistogramSeries

SECONDS_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
"""Default histogram bounds, for latencies in seconds."""

S = TypeVar("S", CounterSeries, GaugeSeries, HistogramSeries)


class Family(Generic[S]):
    """What counters, gauges and histograms have in common."""

    kind: ClassVar[str]

    def __init__(self, name: str, help_text: str, labels: Sequence[str]) -> None:
        exposition_text.check_names(name, help_text, labels)
        self.name = name
        self.help = help_text
        self.label_names = tuple(labels)
        self._series: dict[tuple[str, ...], S] = {}

    def labels(self, *values: str) -> S:
        """The series of these label values, in declared order; made at zero on first use.

        It may be kept and updated for as long as it is not removed.

        Raises:
            MetricError: there are not as many values as declared labels.
        """
        series = self._series.get(values)
        return self._add(values) if series is None else series

    def known(self) -> list[tuple[str, ...]]:
        """Label values of every series there is, in declared order of labels."""
        return list(self._series)

    def remove(self, *values: str) -> None:
        """Stop exposing one series (its subject is gone); unknown ones are ignored."""
        self._series.pop(values, None)

    def value(self, *values: str) -> float:
        """Value of one series (of a histogram: how many observations); 0 when there is none."""
        series = self._series.get(values)
        return 0.0 if series is None else float(series.value)

    def declaration(self) -> Hashable:
        """Equal exactly for metrics declared alike."""
        return self.kind, self.name, self.help, self.label_names

    def lines(self) -> list[str]:
        """This metric's part of the exposition, series sorted by label values."""
        lines = [*exposition_text.head(self.name, self.help, self.kind)]
        for values in sorted(self._series):
            lines += self._series[values].lines()
        return lines

    def _add(self, values: tuple[str, ...]) -> S:
        series = self._series[values] = self._new(self._pairs(values))
        return series

    def _pairs(self, values: tuple[str, ...]) -> str:
        if len(values) != len(self.label_names):
            raise MetricError(f"{self.name}: {len(values)} values for {self.label_names}")
        return exposition_text.pairs(self.label_names, values)

    def _new(self, pairs: str) -> S:
        raise NotImplementedError  # each kind of family makes its own series


class Counter(Family[CounterSeries]):
    """A count that only rises."""

    kind = "counter"

    def inc(self, amount: float = 1.0) -> None:
        """Add `amount` >= 0, in the unit of the family's name, to the series without labels.

        Raises:
            MetricError: the counter has labels, or `amount` is negative or NaN.
        """
        self.labels().inc(amount)

    def _new(self, pairs: str) -> CounterSeries:
        return CounterSeries(self.name, pairs)


class Gauge(Family[GaugeSeries]):
    """A value that goes up and down."""

    kind = "gauge"

    def set(self, value: float) -> None:
        """Set the series without labels, in the unit that the family's name ends with.

        Raises:
            MetricError: the gauge has labels.
        """
        self.labels().set(value)

    def _new(self, pairs: str) -> GaugeSeries:
        return GaugeSeries(self.name, pairs)


class Histogram(Family[HistogramSeries]):
    """A distribution over fixed, rising upper bounds (`+Inf` is added)."""

    kind = "histogram"

    def __init__(
        self, name: str, help_text: str, labels: Sequence[str], buckets: Sequence[float]
    ) -> None:
        super().__init__(name, help_text, labels)
        self.bounds = _rising(name, buckets)

    def observe(self, value: float) -> None:
        """Count one observation on the series without labels, in the unit of its bounds.

        Raises:
            MetricError: the histogram has labels, or `value` is NaN.
        """
        self.labels().observe(value)

    def create(self, *values: str, buckets: Sequence[float]) -> HistogramSeries:
        """The series of these label values; if it is new, with upper bounds of its own.

        `buckets`: inclusive upper bounds in the unit of the family's name, rising; `+Inf` is added.

        Raises:
            MetricError: the bounds do not rise, or there are not as many values as labels.
        """
        series = self._series.get(values)
        if series is None:
            bounds = _rising(self.name, buckets)
            series = HistogramSeries(self.name, self._pairs(values), bounds)
            self._series[values] = series
        return series

    def declaration(self) -> Hashable:
        """See `Family`; the bounds belong to it."""
        return super().declaration(), self.bounds

    def _new(self, pairs: str) -> HistogramSeries:
        return HistogramSeries(self.name, pairs, self.bounds)


def _rising(name: str, buckets: Sequence[float]) -> tuple[float, ...]:
    bounds = tuple(float(b) for b in buckets if b != inf)
    if not bounds or any(not a < b for a, b in pairwise((-inf, *bounds))):
        raise MetricError(f"{name}: buckets {buckets} must rise and not be empty")
    return bounds
