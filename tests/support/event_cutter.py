"""A TCP proxy before one decode, on loopback, that cuts its replies at a chosen point."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from tests.support.cut_proxy import copy_bytes

EVENT = b"\n\n"
STREAM = b"text/event-stream"
EARLY_HEAD = b"HTTP/1.1 102"

Cut = int | float
"""A stream: after so many whole events and a piece of the next (int). A whole reply: so many
seconds after the KV was pulled (float)."""


class EventCutter:
    """Forwards to `host:port`; each entry of `cuts`, which cutters may share, cuts one reply."""

    def __init__(self, cuts: list[Cut], host: str, port: int = 8000) -> None:
        self._backend = (host, port)
        self._server: asyncio.Server | None = None
        self._cuts = cuts
        self.url = ""

    async def start(self) -> None:
        """Listen; the address is in `url` then."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, out = await asyncio.open_connection(*self._backend)
        except OSError:
            writer.transport.abort()
            return
        with suppress(asyncio.CancelledError):  # at the end of a test
            await asyncio.gather(copy_bytes(reader, out), self._replies(there, writer))
        out.transport.abort()

    def _due(self, data: bytes, mark: bytes, kind: type[Cut]) -> Cut | None:
        """The next cut, if the reply that begins here is of its kind."""
        if self._cuts and isinstance(self._cuts[0], kind) and mark in data:
            return self._cuts.pop(0)
        return None

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left: int | None = None
        timer: asyncio.TimerHandle | None = None
        with suppress(OSError):
            while data := await reader.read(65536):
                if timer is not None:
                    timer.cancel()  # the reply has come before
                seconds = self._due(data, EARLY_HEAD, float)
                if seconds is not None:
                    loop = asyncio.get_running_loop()
                    timer = loop.call_later(seconds, writer.transport.abort)
                if left is None and (events := self._due(data, STREAM, int)) is not None:
                    left = int(events)
                if left is not None:
                    whole, left = _first(data, left)
                    if left == 0:
                        writer.write(whole)
                        await writer.drain()
                        break  # closed, not reset: what was written arrives
                writer.write(data)
                await writer.drain()
        writer.close()


def _first(data: bytes, events: int) -> tuple[bytes, int]:
    """So many events of the data with some bytes of the next, and how many are still missing."""
    at = 0
    while events and (end := data.find(EVENT, at)) >= 0:
        at, events = end + len(EVENT), events - 1
    return data[: at + 3], events
