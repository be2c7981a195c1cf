"""How many second prefills a gateway process may spend.

A prefill is the dearest thing to repeat, and repeating it for everyone when something is broken
doubles the load just then. So: a fraction of the offered requests, with a small reserve that
covers the burst when one instance dies.
"""

from __future__ import annotations


class RetryBudget:
    """Token bucket fed by requests, not by time."""

    __slots__ = ("_fraction", "_reserve", "available")

    def __init__(self, fraction: float = 0.05, reserve: float = 20.0) -> None:
        self._fraction = fraction
        self._reserve = reserve
        self.available = reserve

    def earn(self) -> None:
        """One request was offered."""
        self.available = min(self._reserve, self.available + self._fraction)

    def take(self) -> bool:
        """Spend one second prefill; False when none is left."""
        if self.available < 1.0:
            return False
        self.available -= 1.0
        return True
