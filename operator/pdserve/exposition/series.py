"""One series each: what a hot path holds on to and updates without looking anything up.

Made by `Family.labels`; an update is one attribute or one list element.
"""

from __future__ import annotations

from bisect import bisect_left
from math import inf

from pdserve.exposition import exposition_text
from pdserve.exposition.exposition_text import MetricError


class CounterSeries:
    """One series of a counter."""

    __slots__ = ("_prefix", "value")

    def __init__(self, name: str, pairs: str) -> None:
        self._prefix = _prefix(name, pairs)
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Add `amount` >= 0, in the unit of the family's name.

        Raises:
            MetricError: it is negative or NaN.
        """
        if not amount >= 0:
            raise MetricError(f"a counter cannot grow by {amount}")
        self.value += amount

    def lines(self) -> list[str]:
        """The line of the sample, without a newline."""
        return [self._prefix + exposition_text.number(self.value)]


class GaugeSeries:
    """One series of a gauge."""

    __slots__ = ("_prefix", "value")

    def __init__(self, name: str, pairs: str) -> None:
        self._prefix = _prefix(name, pairs)
        self.value = 0.0

    def set(self, value: float) -> None:
        """Set to `value`, in the unit that the family's name ends with.

        NaN and infinities are exposed as such.
        """
        self.value = float(value)

    def lines(self) -> list[str]:
        """The line of the sample, without a newline."""
        return [self._prefix + exposition_text.number(self.value)]


class HistogramSeries:
    """One series of a histogram; `counts` are per bucket, made cumulative when rendered."""

    __slots__ = ("_buckets", "_count", "_sum", "bounds", "counts", "sum")

    def __init__(self, name: str, pairs: str, bounds: tuple[float, ...]) -> None:
        start = f"{name}_bucket{{{pairs}{',' if pairs else ''}le="
        self._buckets = [f'{start}"{exposition_text.bound(b)}"}} ' for b in (*bounds, inf)]
        self._sum = _prefix(f"{name}_sum", pairs)
        self._count = _prefix(f"{name}_count", pairs)
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation in the first bucket whose bound it does not exceed.

        Raises:
            MetricError: it is NaN, which would stay in the sum for good.
        """
        if value != value:  # cheaper than a call of math.isnan
            raise MetricError("a histogram cannot observe NaN")
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def value(self) -> int:
        """How many observations were counted so far."""
        return sum(self.counts)

    def lines(self) -> list[str]:
        """Lines of cumulative buckets, sum and count, without newlines."""
        total, lines = 0, []
        for prefix, count in zip(self._buckets, self.counts, strict=True):
            total += count
            lines.append(f"{prefix}{total}")
        lines.append(self._sum + exposition_text.number(self.sum))
        lines.append(f"{self._count}{total}")
        return lines


def _prefix(name: str, pairs: str) -> str:
    return f"{name}{{{pairs}}} " if pairs else f"{name} "
