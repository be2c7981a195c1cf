"""HTTP to an engine that may answer anything: every reply is bounded in bytes and in time.

A redirect is a reply like any other, and is not followed. Each request has a connection of its
own, which is closed at the end or by `abort`: an engine must end a request whose client goes away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from pdserve.http1.client import Exchange
from pdserve.http1.connect import connected
from pdserve.http1.listener import UpstreamError
from pdserve.terms.json import JsonObject
from pdserve.wire.bounds import WireError, parse_json

MAX_REPLY: Final = 4 << 20
"""Bytes of one reply: more than the answers to short prompts have."""
CONNECT_SECONDS: Final = 3.0
MAX_DEPTH: Final = 16
"""Lists and objects inside one another."""


class ProbeError(Exception):
    """An engine cannot be asked, or its reply passes a bound; the message says which."""


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """A whole reply."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes

    def json(self) -> JsonObject:
        """The object in the body.

        Raises:
            ProbeError: it is none.
        """
        try:
            value = parse_json(self.body, max_bytes=MAX_REPLY, max_depth=MAX_DEPTH)
        except WireError as error:
            raise ProbeError(f"the reply's body: {error}") from error
        if not isinstance(value, dict):
            raise ProbeError(f"the reply's body is {self.shown()}, no JSON object")
        return value

    def shown(self) -> str:
        """The beginning of the body, for messages."""
        return repr(self.body[:80].decode(errors="replace"))


class OpenReply:
    """A request whose reply has begun, or is still to come."""

    def __init__(self, exchange: Exchange, seconds: float) -> None:
        """`exchange`: its head is in; `seconds`: bound of what is left to read."""
        self._exchange, self._seconds = exchange, seconds
        self._taken: list[bytes] = []
        self._size = 0
        self._reading: asyncio.Task[None] | None = None
        self._grown = asyncio.Event()
        self.over = False
        """The body passed `MAX_REPLY`."""

    @property
    def status(self) -> int:
        """Of the reply."""
        return self._exchange.status

    @property
    def headers(self) -> Mapping[bytes, bytes]:
        """Of the reply, names in lower case."""
        return self._exchange.headers

    @property
    def ended(self) -> bool:
        """The whole body is in, or the connection broke."""
        return self._reading is not None and self._reading.done()

    async def first(self, what: bytes) -> bytes:
        """The body so far, once it has `what` in it.

        Raises:
            ProbeError: it does not come in time, or the reply ends without it.
        """
        self._begin()
        try:
            async with asyncio.timeout(self._seconds):
                while what not in b"".join(self._taken):
                    if self.ended:
                        raise ProbeError(f"the reply ends without {what.decode()!r}")
                    self._grown.clear()
                    await self._grown.wait()
        except TimeoutError as error:
            raise ProbeError(f"no {what.decode()!r} within {self._seconds:g} s") from error
        return b"".join(self._taken)

    async def ends_within(self, seconds: float) -> bool:
        """Whether the body ends, or the connection breaks, while it is read so long."""
        reading = self._begin()
        await asyncio.wait((reading,), timeout=seconds)
        return reading.done()

    async def rest(self) -> bytes:
        """The whole body.

        Raises:
            ProbeError: it does not end in time, breaks off, or is too large.
        """
        reading = self._begin()
        try:
            async with asyncio.timeout(self._seconds):
                await asyncio.shield(reading)
        except TimeoutError as error:
            raise ProbeError(f"the reply does not end within {self._seconds:g} s") from error
        except UpstreamError as error:
            if self.over:
                raise ProbeError(f"the reply has more than {MAX_REPLY} bytes") from error
            raise ProbeError(f"the reply breaks off: {error}") from error
        finally:
            await self.abort()
        return b"".join(self._taken)

    async def abort(self) -> None:
        """Close the connection, as a client that goes away does."""
        self._exchange.abort()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    def _begin(self) -> asyncio.Task[None]:
        if self._reading is None:
            self._exchange.resume()
            self._reading = asyncio.create_task(self._exchange.relay(self._take, self._seconds))
            self._reading.add_done_callback(lambda _: self._grown.set())
        return self._reading

    def _take(self, piece: bytes) -> None:
        self._taken.append(piece)
        self._size += len(piece)
        if self._size > MAX_REPLY:
            self.over = True
            self._exchange.abort()
        self._grown.set()


@dataclass(frozen=True, slots=True)
class Probe:
    """One instance; `seconds` bound each reply."""

    url: str
    token: str
    seconds: float

    async def call(
        self, method: str, path: str, body: bytes | None = None,
        headers: Mapping[bytes, bytes] | None = None, *, token: bool = True,
    ) -> ProbeAnswer:  # fmt: skip
        """One request and its whole reply.

        Raises:
            ProbeError: no reply, or one that passes a bound.
        """
        reply = await self.open(method, path, body, headers, token=token)
        return ProbeAnswer(reply.status, dict(reply.headers), await reply.rest())

    async def open(
        self, method: str, path: str, body: bytes | None = None,
        headers: Mapping[bytes, bytes] | None = None, *, token: bool = True,
    ) -> OpenReply:  # fmt: skip
        """One request; returns when its reply's head is in.

        Raises:
            ProbeError: no head of a reply.
        """
        lines = {b"host": urlsplit(self.url).netloc.encode(), **(headers or {})}
        if body is not None:
            lines |= {b"content-type": b"application/json", b"content-length": b"%d" % len(body)}
        if token:
            lines[b"authorization"] = b"Bearer " + self.token.encode()
        head = b"%s %s HTTP/1.1\r\n" % (method.encode(), path.encode())
        head += b"".join(b"%s: %s\r\n" % line for line in lines.items())
        exchange = await self._connected()
        try:
            await exchange.request(head + b"\r\n" + (body or b""), self.seconds)
        except UpstreamError as error:
            raise ProbeError(f"{method} {path}: {error}") from error
        except BaseException:
            exchange.abort()
            raise
        exchange.pause()  # nothing is kept of a reply that is not read
        return OpenReply(exchange, self.seconds)

    async def _connected(self) -> Exchange:
        parts = urlsplit(self.url)
        try:
            return await connected(parts.hostname or "", parts.port or 80, CONNECT_SECONDS)
        except UpstreamError as error:
            raise ProbeError(f"{self.url}: {error}") from error
