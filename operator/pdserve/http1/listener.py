"""Who hears of one reply: whatever an exchange's `Listener` does with it, and one that waits.

Neighbour: `client` is the connection that tells.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from pdserve.terms.failures import Failure

if TYPE_CHECKING:
    from pdserve.http1.client import Exchange


class UpstreamError(Exception):
    """An instance could not be reached, went away, or stayed silent for too long."""

    def __init__(self, kind: Failure, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Listener:
    """Who sent a request, and hears what becomes of it. Here: whom it does not interest."""

    def headed(self, exchange: Exchange) -> None:
        """The reply's head is in. What is to be heard of the rest, `exchange.listen` says."""

    def interim(self, exchange: Exchange) -> None:
        """A `102 Processing` came before that head."""

    def piece(self, data: bytes) -> None:
        """A piece of the body; where it is the last, `exchange.complete` is set already."""

    def completed(self, exchange: Exchange) -> None:
        """All of the reply is there."""

    def lost(self, kind: Failure, message: str) -> None:
        """What was waited for will not come."""


class Waiter(Listener):
    """Listens for one that waits: `told` is done when it need wait no longer."""

    def __init__(
        self, sink: Callable[[bytes], None] | None = None,
        on_interim: Callable[[Exchange], None] | None = None,
    ) -> None:  # fmt: skip
        self.told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sink, self._on_interim = sink, on_interim

    def headed(self, exchange: Exchange) -> None:
        """The head is in."""
        self._end()

    def interim(self, exchange: Exchange) -> None:
        """An early head."""
        if self._on_interim is not None:
            self._on_interim(exchange)

    def piece(self, data: bytes) -> None:
        """A piece of the body."""
        if self._sink is not None:
            self._sink(data)

    def completed(self, exchange: Exchange) -> None:
        """The body is complete."""
        self._end()

    def lost(self, kind: Failure, message: str) -> None:
        """It will not be."""
        if not self.told.done():
            self.told.set_exception(UpstreamError(kind, message))

    def _end(self) -> None:
        if not self.told.done():
            self.told.set_result(None)
