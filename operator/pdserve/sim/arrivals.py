"""Requests in order of time, as a plant is fed with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]
Tokens = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Arrivals:
    """Requests in order of time."""

    times: Times
    """Seconds from the start of the run."""
    tokens: Tokens
    """A row for each: prompt, of it cached, output."""

    def between(self, start: float, end: float) -> Arrivals:
        """Those that arrive from `start` on and before `end`."""
        first, last = np.searchsorted(self.times, [start, end])
        return Arrivals(self.times[first:last], self.tokens[first:last])
