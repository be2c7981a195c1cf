"""How long a container that ended waits before it starts again: the kubelet's rule. Pure.

The first restart is immediate. Each later one waits twice as long as the one before, up to a limit;
a container that ran long enough starts again with the first. A container that a probe ended starts
again at once if its previous run ended longer ago than the wait: the kubelet counts from the end of
the last run that is over, and the run that the probe ends is not over yet.
"""

from __future__ import annotations

from dataclasses import dataclass

BASE_SECONDS = 10.0
LIMIT_SECONDS = 300.0
FORGET_SECONDS = 600.0


@dataclass(slots=True)
class RestartBackoff:
    """The delays of one container; times in seconds."""

    base: float = BASE_SECONDS
    limit: float = LIMIT_SECONDS
    forget: float = FORGET_SECONDS
    _next: float = 0.0
    _waited: float | None = None
    """How long the run that ended now had waited for its start; None: it was the first."""

    def after_run(self, ran: float, *, by_probe: bool = False) -> float:
        """The delay now, after a run of `ran` seconds that ended by itself or by a probe."""
        delay = self._after_probe(ran) if by_probe else self._after_end(ran)
        self._waited = delay
        return delay

    def _after_end(self, ran: float) -> float:
        if ran >= self.forget:
            self._next = 0.0
        return self._take()

    def _after_probe(self, ran: float) -> float:
        if self._waited is None:
            return 0.0
        delay = self._next
        in_back_off = self._waited + ran < delay
        self._take()
        return delay if in_back_off else 0.0

    def _take(self) -> float:
        delay = self._next
        self._next = min(self.limit, delay * 2 if delay else self.base)
        return delay
