"""How long a container that ended waits before it starts again: the kubelet's rule. Pure.

The first restart is immediate; each later one waits twice as long as the one before, up to a
limit; a container that ran long enough starts afresh.
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

    def after_run(self, ran: float) -> float:
        """The delay now, after a run of `ran` seconds."""
        if ran >= self.forget:
            self._next = 0.0
        delay = self._next
        self._next = min(self.limit, delay * 2 if delay else self.base)
        return delay
