"""Kalman filter of a local linear trend, as Dynamo's planner configures it.

q_level 1, q_trend 0.1, r 10; the last value itself until five were seen. From its documented
defaults (planner configuration reference).
"""

from __future__ import annotations

from dataclasses import dataclass

Q_LEVEL, Q_TREND, R = 1.0, 0.1, 10.0
LEAST = 5


@dataclass(slots=True)
class KalmanTrend:
    """Level and trend of a series with even steps."""

    level: float = 0.0
    trend: float = 0.0
    seen: int = 0
    p00: float = 1e3
    p01: float = 0.0
    p11: float = 1e3

    def next(self, value: float) -> float:
        """Take a value in; the one that is expected next, at least 0."""
        self.seen += 1
        if self.seen == 1:
            self.level = value
            return value
        # predict
        level = self.level + self.trend
        p00 = self.p00 + 2 * self.p01 + self.p11 + Q_LEVEL
        p01, p11 = self.p01 + self.p11, self.p11 + Q_TREND
        # update
        error, spread = value - level, p00 + R
        k0, k1 = p00 / spread, p01 / spread
        self.level, self.trend = level + k0 * error, self.trend + k1 * error
        self.p00, self.p01, self.p11 = (1 - k0) * p00, (1 - k0) * p01, p11 - k1 * p01
        return value if self.seen < LEAST else max(self.level + self.trend, 0.0)
