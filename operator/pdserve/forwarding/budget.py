"""How many second prefills a gateway process may spend.

A prefill costs more than any other step, and repeating it for all requests while something is
broken doubles the load just then. So the budget is a fraction of the offered requests, with a
reserve for the burst when an instance dies: one for each slot, since so many requests may be on it.
What saved a request is given back: only what is spent in vain must come to an end.
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
        """Follow the number of slots of the scenario.

        The reserve is one each, at least LEAST_RESERVE.
        """
        reserve = float(max(LEAST_RESERVE, slots))
        self.available = max(0.0, self.available + reserve - self._reserve)
        self._reserve = reserve

    def earn(self) -> None:
        """Add the fraction of one offered request, up to the reserve."""
        self.available = min(self._reserve, self.available + self._fraction)

    def give_back(self, count: int) -> None:
        """Add `count` second prefills whose request was completed, up to the reserve."""
        self.available = min(self._reserve, self.available + count)

    def take(self) -> bool:
        """Spend one second prefill; False, and nothing spent, when less than one is left."""
        if self.available < 1.0:
            return False
        self.available -= 1.0
        return True
