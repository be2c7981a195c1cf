"""Connections as asyncio calls them, without `asyncio.Protocol` as a base class.

asyncio and uvloop only call the methods. A class with a base that is not compiled cannot be
compiled to a C struct (hack/compile.py), and connections are where a gateway spends its time.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast


class StreamCallbacks(Protocol):
    """What asyncio calls on a TCP connection; see `asyncio.Protocol`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands."""

    def data_received(self, data: bytes) -> None:
        """Bytes arrived."""

    def eof_received(self) -> bool | None:
        """The other side sends no more; True: keep this side open."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone; `exc` is None after an orderly end."""

    def pause_writing(self) -> None:
        """The other side takes too little of what is written."""

    def resume_writing(self) -> None:
        """It caught up."""


def as_protocol(connection: StreamCallbacks) -> asyncio.Protocol:
    """The same object, for `create_connection` and `create_server`."""
    return cast(asyncio.Protocol, connection)
