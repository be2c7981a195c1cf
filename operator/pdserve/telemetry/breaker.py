"""A circuit breaker: after repeated failures, leave the server alone for a growing while.

Only bookkeeping; the clock is an argument. Closed -> (failures in a row) -> open until a time ->
one round may try (half open) -> closed on success, open twice as long on failure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class Breaker:
    """Counts failures in a row. `clock` gives monotonic seconds."""

    clock: Callable[[], float]
    failures_to_open: int = 3
    first_pause: float = 5.0
    longest_pause: float = 60.0
    failures: int = 0
    open_until: float = 0.0
    last_error: str = ""

    def refusal(self) -> str | None:
        """Why not to try now, with the seconds left; None when a try is allowed."""
        left = self.open_until - self.clock()
        if left <= 0.0:
            return None
        return f"{self.last_error}; {self.failures} failures in a row, next try in {left:.0f} s"

    def succeeded(self) -> None:
        """Close: forget failures, the pause and the last error."""
        self.failures, self.open_until, self.last_error = 0, 0.0, ""

    def failed(self, error: str) -> None:
        """Count a failure; open from the `failures_to_open`-th in a row on.

        The pause is `first_pause` seconds and doubles with each further failure, up to
        `longest_pause`. `error` is shown by `refusal`.
        """
        self.failures += 1
        self.last_error = error
        over = self.failures - self.failures_to_open
        if over >= 0:
            pause = min(self.first_pause * 2.0 ** min(over, 30), self.longest_pause)
            self.open_until = self.clock() + pause
