"""HTTP/1.1 server side without tasks: one object per connection, one request at a time.

Gives the application an `HttpRequest` and a `Responder`; tells the responder when the client has
gone. Pipelined requests wait in order. Receiving, limits and framing are `pdserve.http1`'s.

What a client does to its connection is bounded: bytes and requests that wait, seconds until a
request has arrived, seconds without taking what was written. An exception of the application
becomes a 500 of that request; what the request held is freed like that of a client that left.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import orjson

from pdserve.http1.errors import ApiError
from pdserve.http1.receive import HttpRequest, Receiver
from pdserve.http1.send import LAST_CHUNK, STATUS_LINES, chunk

JSON = "application/json"
MAX_HEAD = 64 << 10
MAX_WAITING = 64
"""Complete requests of one connection that may wait for the answer to the one before them."""
RESET_LOOKS = (0.02, 0.2, 0.5)
"""Seconds between the end of a client's bytes and looks whether it had read its last reply."""
LINGER_SECONDS = 5.0
"""How long a refused client may go on sending before it is cut."""
_TCP_CLOSE = 7
"""`tcp_info.tcpi_state` of a connection that the peer has reset (linux/tcp_states.h)."""

log = logging.getLogger(__name__)


class Responder:
    """Answers one request: `send` once, or `start`, `write`..., `end`; `interim` before either.

    `on_disconnect` is called when the client goes away before the answer is complete, or the
    application failed; `on_unread` when it goes away without having read the complete answer.
    """

    def __init__(self, connection: HttpConnection, keep_alive: bool, head: bool = False) -> None:
        """`head`: the request was HEAD, the answer goes without its body."""
        self._connection, self._keep_alive, self._head_only = connection, keep_alive, head
        self.on_disconnect: Callable[[], None] | None = None
        self.on_unread: Callable[[], None] | None = None
        self.started = self.done = False

    def interim(self, status: int) -> None:
        """An interim head (RFC 9110 section 15.2) before the final one."""
        if not self.started and not self.done:
            self._connection.write(STATUS_LINES[status] + b"\r\n")

    def fail(self, error: ApiError) -> None:
        """End the request after a failure of this process: 500, or a cut where a reply began."""
        leave, self.on_disconnect = self.on_disconnect, None
        try:
            if leave is not None:
                leave()
        finally:
            if self.started:
                self._connection.close()
            elif not self.done:
                self.send_error(error)

    def send(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, kind: str = JSON
    ) -> None:
        """A whole answer."""
        head = self._head(status, headers, kind, f"content-length: {len(body)}")
        self._finish(head if self._head_only else head + body)

    def send_json(
        self, status: int, value: object, headers: Mapping[str, str] | None = None
    ) -> None:
        """A whole JSON answer."""
        self.send(status, orjson.dumps(value), headers)

    def send_error(self, error: ApiError, headers: Mapping[str, str] | None = None) -> None:
        """OpenAI's error object."""
        self.send(error.status, error.body(), headers)

    def start(self, headers: Mapping[str, str], kind: str, first: bytes) -> None:
        """Status 200 and the first piece of a stream, in one write."""
        head = self._head(200, headers, kind, "transfer-encoding: chunked")
        self.started = True
        self._connection.write(head + chunk(first))

    def write(self, data: bytes) -> None:
        """One more piece."""
        self._connection.write(chunk(data))

    def end(self, data: bytes = b"") -> None:
        """The last piece."""
        self._finish((chunk(data) if data else b"") + LAST_CHUNK)

    def _head(
        self, status: int, headers: Mapping[str, str] | None, kind: str, framing: str
    ) -> bytes:
        lines = [f"content-type: {kind}\r\n"]
        lines += [f"{name}: {value}\r\n" for name, value in (headers or {}).items()]
        if not self._keep_alive:
            lines.append("connection: close\r\n")
        lines.append(f"{framing}\r\n\r\n")
        return STATUS_LINES[status] + "".join(lines).encode("latin-1")

    def _finish(self, data: bytes) -> None:
        self.done = True
        self.on_disconnect = None
        self._connection.write(data)
        self._connection.answered(self._keep_alive, self.on_unread)


App = Callable[[HttpRequest, Responder], None]


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one connection may cost. Bytes and seconds.

    `kept` bytes of a body sent to one of `paths` are stored, of all others `body`. A request has
    arrived `arrival` seconds after its first byte, and a client takes what is written to it
    within the same time.
    """

    body: int
    kept: int
    paths: frozenset[str]
    arrival: float


class HttpConnection(Receiver, asyncio.Protocol):
    """One client connection."""

    def __init__(
        self, app: App, bounds: ConnectionLimits, connections: set[HttpConnection]
    ) -> None:
        super().__init__(MAX_HEAD, bounds.body)
        self._app, self._bounds, self._all = app, bounds, connections
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._current: Responder | None = None
        self._unread: Callable[[], None] | None = None
        self._arriving: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._serving = self._closing = False

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)
        raw = transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._all.discard(self)
        self._transport = None
        self._stop_timers()
        self.received.clear()
        current, self._current = self._current, None
        unread, self._unread = self._unread, None
        if current is not None and current.on_disconnect is not None:
            current.on_disconnect()
        elif exc is not None and unread is not None:
            unread()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if not self._closing:
            self.receive(data)
            self._next()

    def eof_received(self) -> bool:
        """Called by the event loop: the client sends nothing more; usually it is gone.

        Its kernel answers our last bytes with a reset when the client had not read them. Where that
        matters the connection is kept for a moment to see it.
        """
        if self._unread is None:
            return False
        self._look_for_reset(0)
        return True

    def pause_writing(self) -> None:
        """Called by the event loop: the client does not take what is written."""
        self._stalled = self._loop.call_later(self._bounds.arrival, self._abort)

    def resume_writing(self) -> None:
        """Called by the event loop."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        self._next()

    def close(self) -> None:
        """Drop the connection."""
        self._closing = True
        self._stop_timers()
        self.received.clear()
        if self._transport is not None:
            self._transport.close()

    # Receiver

    def began(self) -> None:
        """A request must arrive in time from its first byte on."""
        self._stop_arriving()
        self._arriving = self._loop.call_later(self._bounds.arrival, self._late)

    def awaits_body(self) -> None:
        """Ask for the body."""
        self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def keeps(self, path: str) -> int:
        """Prompts are bounded more tightly than tables."""
        bounds = self._bounds
        return bounds.kept if path in bounds.paths else bounds.body

    def complete(self) -> None:
        """Serve it, or let it wait if there is room for one more."""
        self._stop_arriving()
        self._next()
        size = sum(len(request.body) for request in self.received)
        if len(self.received) > MAX_WAITING or size > self._bounds.body:
            self.refuse(
                ApiError(
                    400,
                    f"more than {MAX_WAITING} requests or {self._bounds.body} bytes wait on this "
                    "connection; await the answers",
                    code="too_many_pipelined",
                )
            )

    # for Responder

    def write(self, data: bytes) -> None:
        """Send bytes; silently nothing when the client is gone."""
        if self._transport is not None:
            self._transport.write(data)

    def answered(self, keep_alive: bool, unread: Callable[[], None] | None) -> None:
        """The answer to the current request is complete.

        `unread` is called when the client turns out to have left without reading it.
        """
        self._current = None
        if self._transport is None or self._transport.is_closing():
            if unread is not None:
                unread()
            return
        self._unread = unread
        if keep_alive:
            self._next()
        elif self.refusal is not None:
            self._linger()
        else:
            self.close()

    def _next(self) -> None:
        if self._serving:
            return  # answered within the call below: its loop goes on
        self._serving = True
        try:
            while self._current is None and self._stalled is None and self.received:
                request = self.received.popleft()
                self._serve(request, Responder(self, request.keep_alive, request.method == "HEAD"))
        finally:
            self._serving = False
        if self._current is None and self.refusal is not None and not self._closing:
            if self.received:
                return  # a slow reader: the rest is served when it has read
            # What cannot be read on is answered, and the rest of the connection dropped.
            Responder(self, keep_alive=False, head=self.method == "HEAD").send_error(self.refusal)

    def _serve(self, request: HttpRequest, responder: Responder) -> None:
        self._current = responder
        self._unread = None
        try:
            self._app(request, responder)
        except ApiError as error:
            responder.send_error(error)
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            responder.fail(ApiError(500, "internal error", kind="server_error"))

    def _late(self) -> None:
        self._arriving = None
        self.refuse(
            ApiError(
                408,
                f"the request was not complete {self._bounds.arrival:g} s after its first byte",
                code="request_timeout",
            )
        )
        self._next()

    def _abort(self) -> None:
        self._stalled = None
        if self._transport is not None:
            log.info("a client took nothing for %g s: dropped", self._bounds.arrival)
            self._transport.abort()

    def _linger(self) -> None:
        """Close after a refusal, but go on reading (and dropping) what the client still sends.

        A socket closed with unread bytes is reset, and a reset destroys the reply that a client
        reads only after it has sent its request, as most do.
        """
        self._closing = True
        self._stop_timers()
        self.received.clear()
        if self._transport is not None:
            self._transport.write_eof()
            self._lingering = self._loop.call_later(LINGER_SECONDS, self._transport.abort)

    def _look_for_reset(self, look: int) -> None:
        if self._transport is None:
            return
        raw = self._transport.get_extra_info("socket")
        unread = self._unread
        if unread is not None and raw is not None and _was_reset(raw):
            self._unread = None
            unread()
            self.close()
        elif look < len(RESET_LOOKS) and unread is not None:
            self._loop.call_later(RESET_LOOKS[look], self._look_for_reset, look + 1)
        else:
            self.close()

    def _stop_arriving(self) -> None:
        if self._arriving is not None:
            self._arriving.cancel()
            self._arriving = None

    def _stop_timers(self) -> None:
        self._stop_arriving()
        for timer in (self._stalled, self._lingering):
            if timer is not None:
                timer.cancel()
        self._stalled = self._lingering = None


def _was_reset(raw: socket.socket) -> bool:
    try:
        return raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE
    except OSError:
        return True
