"""HTTP/1.1 client side at protocol level: one connection to an instance.

A reply's head and body come apart, so that a rejection costs one round trip and a stream can be
relayed piece by piece as it arrives. Who sent the request listens: each event is one call, and
nothing waits. `request`, `read` and `relay` are the same for callers that would rather wait.
Neighbours: `pool` keeps connections; `server` is the other side; what a reply means is its
listener's to say.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import httptools

from pdserve.http1.listener import Listener, Waiter
from pdserve.http1.sweeper import Sweeper
from pdserve.terms.failures import Failure

NEVER = float("inf")
MAX_BODY = 64 << 20
MAX_HEAD = 64 << 10
_NOTHING: Final = 0
_HEAD: Final = 1
_WHOLE: Final = 2
_PIECES: Final = 3
"""What the listener waits for."""


_NO_LISTENER: Final = Listener()


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
        self._sweeper = sweeper or Sweeper()
        self._patience = 0.0
        self._transport: asyncio.Transport | None = None
        self._listener = _NO_LISTENER
        self._awaited = _NOTHING
        self._telling = self._swept = False
        self._parts: list[bytes] = []
        self._size = 0
        self._head_size = 0
        """Bytes that came and are no body, since the last that were."""
        self._paused = False
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
        self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            # No request asks for an upgrade, so what follows is no reply.
            self._fail("lost", f"malformed reply: {error}")
            self.abort()
            if self._awaited:
                self._tell()
            return
        if self._head_size > MAX_HEAD and not self._complete:
            part = "trailer section" if self.status else "head"
            self._fail("lost", f"the reply's {part} is larger than {MAX_HEAD} bytes")
            return
        if self._size > MAX_BODY and self._awaited != _PIECES:
            self._fail("lost", f"reply is larger than {MAX_BODY} bytes")
            return
        if self._awaited:
            self._tell()

    def eof_received(self) -> None:
        """asyncio: the instance sends no more, which ends the connection.

        It is also the end of a body without a length (RFC 9112, 6.3). Whether such a body is all
        that its instance had to say, its reader finds out.
        """
        head = self.headers
        delimited = b"content-length" in head or b"transfer-encoding" in head
        if self.status and not self._complete and not delimited:
            self._complete = True
            if self._awaited:
                self._tell()

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

    def on_message_begin(self) -> None:
        """httptools: a reply, or an interim head, begins.

        Raises:
            ValueError: there was a whole one already. What follows it is no answer to us.
        """
        if self._complete:
            raise ValueError("a second reply")

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: take one header of the reply, and no trailer (RFC 9110, 6.5.1)."""
        if not self.status:
            self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """The reply's head is in (an interim 1xx head is only told)."""
        status = self._parser.get_status_code()
        if status < 200:
            self.headers = {}
            if status == 102 and self._awaited == _HEAD:
                self._listener.interim(self)
            return
        self.status = status

    def on_body(self, body: bytes) -> None:
        """httptools: take a piece of the reply's body."""
        self._parts.append(body)
        self._size += len(body)
        self._head_size = 0

    def on_message_complete(self) -> None:
        """httptools: note the end of the reply."""
        if self.status:
            self._complete = True
            # An answer may come before all of the request has gone; the next one would wait for it.
            unsent = self._transport is not None and self._transport.get_write_buffer_size()
            self.reusable = self._parser.should_keep_alive() and not self.closed and not unsent

    # --- sweeper ---

    def overdue(self) -> None:
        """No head came in time, or nothing more of the reply did."""
        if self._awaited == _NOTHING:
            return
        if self._awaited == _HEAD:
            self._fail("timeout", f"no answer within {self._patience:.3f} s")
            return
        # While the client reads nothing, the instance is not asked for anything.
        now = time.perf_counter()
        silent = 0.0 if self._paused else now - self._touched
        if silent >= self._patience:
            what = "reply" if self._awaited == _WHOLE else "stream"
            self._fail("timeout", f"{what} silent for {silent:.1f} s")
        else:
            self.due = now + self._patience - silent

    # --- one request ---

    def send(self, data: bytes, patience: float, listener: Listener, rest: bytes = b"") -> None:
        """Send a request; `listener` hears of the reply's head, or within `patience` s of its loss.

        `rest` follows `data` without being joined to it.
        """
        self._parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers = {}
        self._parts = []
        self._size = self._head_size = 0
        self._paused = self._complete = self.reusable = False
        self._failed = None
        self._listener, self._awaited = listener, _HEAD
        if self.closed or self._transport is None:
            self._fail("lost", "connection was closed")
            return
        if rest:
            self._transport.writelines((data, rest))
        else:
            self._transport.write(data)
        self._wait(patience)

    def listen(self, listener: Listener, silence: float, *, pieces: bool) -> None:
        """Hear of the body from now on: in pieces and of its end, or only when all is there.

        `silence`: seconds without a byte after which the instance is lost. What has come already is
        told at once.
        """
        self._listener, self._awaited = listener, _PIECES if pieces else _WHOLE
        if not self._complete and self._failed is None:
            self._wait(silence)
        self._tell()

    def forget(self) -> None:
        """Tell nothing more of this request."""
        self._ends()
        self._listener = _NO_LISTENER

    def body(self) -> bytes:
        """What has come of the body and was not told as a piece."""
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    @property
    def complete(self) -> bool:
        """All of the reply has come."""
        return self._complete

    @property
    def silent(self) -> bool:
        """Nothing of a reply has come, not even an interim head."""
        return not self.status and not self._head_size

    # --- the same, for those that wait ---

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
        waiter = Waiter(on_interim=on_interim)
        self.send(data, patience, waiter, rest)
        try:
            await waiter.told
        except asyncio.CancelledError:
            self.abort()
            raise
        finally:
            self.forget()

    async def read(self, idle_timeout: float) -> bytes:
        """The whole body.

        Raises:
            UpstreamError: the instance is lost, or sends nothing for `idle_timeout` seconds.
        """
        waiter = Waiter()
        self.listen(waiter, idle_timeout, pieces=False)
        try:
            await waiter.told
        finally:
            self.forget()
        return self.body()

    async def relay(self, sink: Callable[[bytes], None], idle_timeout: float) -> None:
        """Hand body pieces to `sink` as they arrive, until the end of the reply.

        Raises:
            UpstreamError: the instance is lost, or sends nothing for `idle_timeout` seconds.
        """
        waiter = Waiter(sink=sink)
        self.listen(waiter, idle_timeout, pieces=True)
        try:
            await waiter.told
        finally:
            self.forget()

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

    def _wait(self, seconds: float) -> None:
        self._touched = time.perf_counter()
        self._patience, self.due = seconds, self._touched + seconds
        self._swept = True
        self._sweeper.add(self)

    def _tell(self) -> None:
        """Tell the listener what it waits for, as far as it is there."""
        if self._telling:
            return
        self._telling = True
        try:
            if self._awaited == _HEAD and self.status:
                self._ends()
                self._listener.headed(self)
            if self._awaited == _PIECES and self._parts:
                data, self._parts, self._size = self.body(), [], 0
                self._listener.piece(data)
            if self._awaited == _NOTHING or (self._awaited == _HEAD and self.status):
                return
            if self._complete and self._awaited != _HEAD:
                self._ends()
                self._listener.completed(self)
            elif self._failed is not None:
                self._ends()
                self._listener.lost(*self._failed)
        finally:
            self._telling = False

    def _ends(self) -> None:
        """Nothing is awaited for now."""
        self._awaited = _NOTHING
        if self._swept:
            self._swept = False
            self._sweeper.discard(self)

    def _fail(self, kind: Failure, message: str) -> None:
        """Note that the reply will not come, and close the connection."""
        if self._complete:
            return
        self._failed = self._failed or (kind, message)
        if self._awaited:
            self._tell()
        if not self.closed:
            self.abort()
