"""HTTP/1.1 client side at protocol level: one connection to an instance.

A reply's head and body come apart, so that a rejection costs one round trip and a stream can be
relayed piece by piece as it arrives. Every failure is an `UpstreamError` with its kind.
Neighbours: `pool` keeps connections; `server` is the other side; the gateway's `legs` decide what a
reply means.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import httptools

from pdserve.http1.sweeper import Sweeper
from pdserve.terms.failures import Failure

NEVER = float("inf")
MAX_BODY = 64 << 20
MAX_HEAD = 64 << 10


class UpstreamError(Exception):
    """An instance could not be reached, went away, or stayed silent for too long."""

    def __init__(self, kind: Failure, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Exchange:
    """One connection to an instance, and the request that is on it now."""

    def __init__(self, sweeper: Sweeper | None = None) -> None:
        """`sweeper`: one that many connections share; None: one of its own."""
        self.due = NEVER
        """When what is waited for should have come, in seconds of `time.perf_counter`."""
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.reusable = False
        self.closed = False
        self.idle_since = 0.0
        self._loop = asyncio.get_running_loop()
        self._sweeper = sweeper or Sweeper()
        self._patience = 0.0
        self._transport: asyncio.Transport | None = None
        self._head: asyncio.Future[None] | None = None
        self._end: asyncio.Future[None] | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._head_size = 0
        self._paused = False
        self._on_interim: Callable[[Exchange], None] | None = None
        self._sink: Callable[[bytes], None] | None = None
        self._complete = False
        self._failed: tuple[Failure, str] | None = None
        """Why the reply will not come. An exception that was raised refers to this object."""
        self._touched = 0.0

    # --- StreamCallbacks ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the connection stands."""
        self._transport = transport  # type: ignore[assignment]  # TCP gives a Transport

    def data_received(self, data: bytes) -> None:
        """Bytes of the reply; body pieces that came together are handed on together."""
        if self._complete:
            # Nothing is due on a kept connection: whatever this is, it is no answer to us.
            self.abort()
            return
        self._touched = time.perf_counter()
        if not self.status:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            # No request asks for an upgrade, so what follows is no reply.
            self._fail("lost", f"malformed reply: {error}")
            self.abort()
            return
        if not self.status and self._head_size > MAX_HEAD:
            self._fail("lost", f"the reply's head is larger than {MAX_HEAD} bytes")
            self.abort()
            return
        self._deliver()

    def eof_received(self) -> None:
        """asyncio: the instance sends no more, which ends the connection."""

    def pause_writing(self) -> None:
        """asyncio: a request waits in the transport; its reply comes later."""

    def resume_writing(self) -> None:
        """asyncio: it is on its way."""

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the instance closed the connection, or we did.

        `exc` None means an orderly end.
        """
        self.closed = True
        self.reusable = False
        # It refers to this object, which need not wait for the collector.
        self._parser = httptools.HttpResponseParser(None)
        self._fail("lost", f"connection lost: {exc or 'closed by the instance'}")

    # --- httptools callbacks ---

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: take one header of the reply."""
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """The reply's head is in (an interim 1xx head is only told)."""
        status = self._parser.get_status_code()
        if status < 200:
            self.headers = {}
            if status == 102 and self._on_interim is not None:
                self._on_interim(self)
            return
        self.status = status
        if self._head is not None and not self._head.done():
            self._head.set_result(None)

    def on_body(self, body: bytes) -> None:
        """httptools: take a piece of the reply's body."""
        self._parts.append(body)
        self._size += len(body)

    def on_message_complete(self) -> None:
        """httptools: note the end of the reply."""
        if self.status:
            self._complete = True
            self.reusable = self._parser.should_keep_alive() and not self.closed

    # --- sweeper ---

    def overdue(self) -> None:
        """No head came in time, or nothing more of the reply did."""
        if self._head is not None:
            if not self._head.done():
                self._fail("timeout", f"no answer within {self._patience:.3f} s")
                self.abort()
            return
        # While the client reads nothing, the instance is not asked for anything.
        now = time.perf_counter()
        silent = 0.0 if self._paused else now - self._touched
        if silent >= self._patience:
            what = "reply" if self._sink is None else "stream"
            self._fail("timeout", f"{what} silent for {silent:.1f} s")
            self.abort()
        else:
            self.due = now + self._patience - silent

    # --- one request ---

    async def request(
        self, data: bytes, patience: float,
        on_interim: Callable[[Exchange], None] | None = None, rest: bytes = b"",
    ) -> None:  # fmt: skip
        """Send a request and wait for the reply's head, at most `patience` seconds.

        `rest` follows `data` without being joined to it.
        `on_interim` is called for each `102 Processing` before that head.

        Raises:
            UpstreamError: the connection is lost, or no head came in time.
        """
        self._parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers = {}
        self._parts = []
        self._size = self._head_size = 0
        self._on_interim = on_interim
        self._paused = False
        self._sink = None
        self._complete = False
        self._failed = None
        self.reusable = False
        self._head = self._loop.create_future()
        self._end = None
        if self.closed or self._transport is None:
            raise UpstreamError("lost", "connection was closed")
        if rest:
            self._transport.writelines((data, rest))
        else:
            self._transport.write(data)
        self._wait(patience)
        try:
            await self._head
        except asyncio.CancelledError:
            self.abort()
            raise
        finally:
            self._sweeper.discard(self)
            self._head = self._on_interim = None

    async def read(self, idle_timeout: float) -> bytes:
        """The whole body.

        Raises:
            UpstreamError: the instance is lost, or sends nothing for `idle_timeout` seconds.
        """
        await self._watched(idle_timeout)
        return b"".join(self._parts)

    async def relay(self, sink: Callable[[bytes], None], idle_timeout: float) -> None:
        """Hand body pieces to `sink` as they arrive, until the end of the reply.

        Raises:
            UpstreamError: the instance is lost, or sends nothing for `idle_timeout` seconds.
        """
        self._sink = sink
        self._deliver()
        try:
            await self._watched(idle_timeout)
        finally:
            self._sink = None

    @property
    def complete(self) -> bool:
        """All of the reply has come."""
        return self._complete

    def pause(self) -> None:
        """Stop reading (the client is slower than the instance)."""
        if self._transport is not None and not self.closed:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Go on reading."""
        if self._transport is not None and not self.closed:
            self._paused = False
            self._transport.resume_reading()
            self._touched = time.perf_counter()

    def resume_if_paused(self) -> None:
        """Go on reading where `pause` had stopped it."""
        if self._paused:
            self.resume()

    def abort(self) -> None:
        """Close the connection at once; the instance sees the client go."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    # --- internals ---

    async def _watched(self, idle_timeout: float) -> None:
        """Wait for the end of the reply; raises UpstreamError."""
        if self._complete:
            return
        if self._failed is not None:
            raise UpstreamError(*self._failed)
        self._wait(idle_timeout)
        self._end = self._loop.create_future()
        try:
            await self._end
        finally:
            self._sweeper.discard(self)
            self._end = None

    def _wait(self, seconds: float) -> None:
        self._touched = time.perf_counter()
        self._patience, self.due = seconds, self._touched + seconds
        self._sweeper.add(self)

    def _deliver(self) -> None:
        if self._sink is not None and self._parts:
            parts, self._parts, self._size = self._parts, [], 0
            self._sink(parts[0] if len(parts) == 1 else b"".join(parts))
        if self._size > MAX_BODY:
            self._fail("lost", f"reply is larger than {MAX_BODY} bytes")
            self.abort()
        elif self._complete and self._end is not None and not self._end.done():
            self._end.set_result(None)

    def _fail(self, kind: Failure, message: str) -> None:
        if self._complete:
            return
        self._failed = self._failed or (kind, message)
        for waiting in (self._head, self._end):
            if waiting is not None and not waiting.done():
                waiting.set_exception(UpstreamError(kind, message))
