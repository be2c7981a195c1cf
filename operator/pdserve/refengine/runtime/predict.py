"""Predicts durations for hints and deadlines from finished steps.

Prefill time is fitted as `base + rate * tokens` by least squares with exponential forgetting; until
two different sizes were seen, it is taken as proportional. Decode steps and output lengths are
moving averages. In paced mode the profile is used instead (see `pacing`).
"""

from __future__ import annotations

FORGET = 0.97


class Average:
    """Exponential moving average that starts at the first value."""

    def __init__(self, weight: float = 0.1) -> None:
        self._weight = weight
        self.value: float | None = None

    def add(self, value: float) -> None:
        """Take in one value, in any unit; older ones weigh less."""
        if self.value is None:
            self.value = value
        else:
            self.value += self._weight * (value - self.value)

    def get(self, default: float) -> float:
        """The average in the unit of the values, or `default` before the first."""
        return default if self.value is None else self.value


class PrefillTime:
    """Predicts seconds of computing a number of prompt tokens in one batch."""

    def __init__(self) -> None:
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Take in one finished batch: its prompt tokens, and how many seconds it took."""
        x, y = float(tokens), seconds
        for name, value in (("_n", 1.0), ("_x", x), ("_y", y), ("_xx", x * x), ("_xy", x * y)):
            setattr(self, name, getattr(self, name) * FORGET + value)

    def seconds(self, tokens: int) -> float:
        """Expected seconds of a batch of `tokens` prompt tokens; 0 before anything was seen."""
        if not self._n:
            return 0.0
        spread = self._n * self._xx - self._x * self._x
        if spread < 1e-3 * self._n * self._xx:
            return self._y / self._x * tokens if self._x else 0.0
        rate = max(0.0, (self._n * self._xy - self._x * self._y) / spread)
        base = max(0.0, (self._y - rate * self._x) / self._n)
        return base + rate * tokens
