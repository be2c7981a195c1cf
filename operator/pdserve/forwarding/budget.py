"""How many second prefills a gateway process may spend.

A prefill is the dearest thing to repeat, and repeating it for all requests when something is broken
doubles the load just then. So: a fraction of the offered requests, with a reserve that covers the
burst when an instance dies: one for each slot, since so many requests may die with it.
"""

from __future__ import annotations

LEAST_RESERVE = 20


class RetryBudget:
    """Token bucket fed by requests, not by time."""

    __slots__ = ("_fraction", "_reserve", "available")

    def __init__(self, fraction: float = 0.05, reserve: float = LEAST_RESERVE) -> None:
        self._fraction = fraction
        self._reserve = reserve
        self.available = reserve

    def cover(self, slots: int) -> None:
        """The scenario has so many slots now."""
        reserve = float(max(LEAST_RESERVE, slots))
        self.available = max(0.0, self.available + reserve - self._reserve)
        self._reserve = reserve

    def earn(self) -> None:
        """One request was offered."""
        self.available = min(self._reserve, self.available + self._fraction)

    def take(self) -> bool:
        """Spend one second prefill; False when none is left."""
        if self.available < 1.0:
            return False
        self.available -= 1.0
        return True
