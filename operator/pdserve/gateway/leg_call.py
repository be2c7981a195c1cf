"""One leg on the wire: what its connection tells becomes an event of its request.

Neighbours: `request_driver` sends legs, `http1.pool` has the connections.
"""

from __future__ import annotations

from typing import Protocol

from pdserve.forwarding.request.leg import Leg
from pdserve.http1.client import Exchange
from pdserve.http1.pool import Call
from pdserve.terms.failures import Failure


class LegEvents(Protocol):
    """Who sent a leg."""

    def leg_headed(self, call: LegCall, exchange: Exchange) -> None:
        """Its reply began."""

    def leg_interim(self, call: LegCall) -> None:
        """An early head."""

    def leg_piece(self, call: LegCall, data: bytes) -> None:
        """A piece of its reply."""

    def leg_completed(self, call: LegCall, exchange: Exchange) -> None:
        """All of its reply is there."""

    def leg_failed(self, call: LegCall, kind: Failure, message: str) -> None:
        """It broke."""

    def leg_overdue(self, call: LegCall) -> None:
        """`Leg.overdue_at` has passed without an answer."""

    def leg_bug(self, error: Exception) -> None:
        """One of these raised. A connection's callbacks must not: it would end for all."""


class LegCall(Call):
    """The call of one leg."""

    def __init__(self, leg: Leg, events: LegEvents) -> None:
        super().__init__()
        self.leg, self._events = leg, events
        self.due = leg.overdue_at
        """For the sweeper, until the leg has an answer."""

    def headed(self, exchange: Exchange) -> None:
        """See `Listener`."""
        try:
            self._events.leg_headed(self, exchange)
        except Exception as error:
            self._events.leg_bug(error)

    def interim(self, exchange: Exchange) -> None:
        """See `Listener`."""
        try:
            self._events.leg_interim(self)
        except Exception as error:
            self._events.leg_bug(error)

    def piece(self, data: bytes) -> None:
        """See `Listener`."""
        try:
            self._events.leg_piece(self, data)
        except Exception as error:
            self._events.leg_bug(error)

    def completed(self, exchange: Exchange) -> None:
        """See `Listener`."""
        try:
            self._events.leg_completed(self, exchange)
        except Exception as error:
            self._events.leg_bug(error)

    def failed(self, kind: Failure, message: str) -> None:
        """See `Call`."""
        try:
            self._events.leg_failed(self, kind, message)
        except Exception as error:
            self._events.leg_bug(error)

    def overdue(self) -> None:
        """See `http1.sweeper`."""
        self.due = float("inf")
        try:
            self._events.leg_overdue(self)
        except Exception as error:
            self._events.leg_bug(error)
