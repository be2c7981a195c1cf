"""Passive ejection: an instance that fails requests is left alone for a while, then probed.

Fed only by traffic (connect errors, lost connections, 5xx, first-byte timeouts); a rejection is a
sign of life. States: closed -> ejected for a growing time -> half-open, where exactly one request
may try -> closed or ejected again. A connection lost under a request leads to half-open at once:
one request must not take an instance from all others. Ejection is this process's own estimate and
lasts seconds; the route table decides who belongs to the service.
"""

from __future__ import annotations

from pdserve.terms.failures import Failure

BASE_SECONDS = 0.5
MAX_SECONDS = 10.0
STATUS_LIMIT = 3
"""Consecutive 5xx or timeouts that eject; a refused connection ejects at once."""


def doubled(first: float, times: int, most: float) -> float:
    """`first` doubled `times` times, at most `most`; `times` may be any number from 0 on."""
    return min(most, first * 2.0 ** min(times, 30))


class Health:
    """State of one instance as one gateway process sees it."""

    __slots__ = ("_ejections", "_failures", "_probing", "_until")

    def __init__(self) -> None:
        self._failures = 0
        self._ejections = 0
        self._until: float | None = None
        self._probing = False

    @property
    def ejected(self) -> bool:
        """True from ejection until a request succeeds again (half-open included)."""
        return self._until is not None

    def next_try(self, now: float) -> float:
        """When a request may go there: `now`, a later time, or infinity while a probe is out.

        Times are monotonic seconds.
        """
        if self._until is None:
            return now
        if self._probing:
            return float("inf")
        return max(now, self._until)

    def attempt(self) -> None:
        """Note that a request is being sent; half-open, it becomes the one probe."""
        if self._until is not None:
            self._probing = True

    def abandon(self) -> None:
        """Note that a request ended without a result (the client left).

        Half-open, the next may probe.
        """
        self._probing = False

    def success(self) -> None:
        """Note an answer, be it a rejection.

        The instance is in use again and its failures are zero.
        """
        self._failures = 0
        self._ejections = 0
        self._until = None
        self._probing = False

    def failure(self, kind: Failure, now: float) -> None:
        """Note that a request failed there at `now` (monotonic seconds).

        Ejects at once for a refused connection or a failed probe, else from STATUS_LIMIT in a row
        on, for BASE_SECONDS doubled each time up to MAX_SECONDS. A lost connection leads to
        half-open.
        """
        self._failures += 1
        was_probe, self._probing = self._probing, False
        if self._until is not None and not was_probe:
            return
        if kind == "lost" and not was_probe:
            # The request may have broken it, or only its connection: one request finds out.
            self._until = now
        elif kind == "connect" or was_probe or self._failures >= STATUS_LIMIT:
            self._until = now + doubled(BASE_SECONDS, self._ejections, MAX_SECONDS)
            self._ejections += 1
