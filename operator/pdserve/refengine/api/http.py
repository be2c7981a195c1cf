"""HTTP/1.1 server side without tasks: one object per connection, one request at a time.

Gives the application a `Request` and a `Responder`; tells the responder when the client has gone.
Pipelined requests wait in order. Receiving, limits and framing are `pdserve.http`'s.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import cast

import orjson

from pdserve.http.errors import ApiError
from pdserve.http.receive import Receiver, Request
from pdserve.http.send import LAST_CHUNK, STATUS_LINES, chunk

JSON = "application/json"
MAX_HEAD = 64 << 10


class Responder:
    """Answers one request: `send` once, or `start`, `write`..., `end`.

    `on_disconnect` is called when the client goes away before the answer is complete.
    """

    def __init__(self, connection: HttpConnection, keep_alive: bool) -> None:
        self._connection, self._keep_alive = connection, keep_alive
        self.on_disconnect: Callable[[], None] | None = None
        self.done = False

    def send(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, kind: str = JSON
    ) -> None:
        """A whole answer."""
        self._finish(self._head(status, headers, kind, f"content-length: {len(body)}") + body)

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
        self._connection.answered(self._keep_alive)


App = Callable[[Request, Responder], None]


class HttpConnection(Receiver, asyncio.Protocol):
    """One client connection."""

    def __init__(self, app: App, max_body: int, connections: set[HttpConnection]) -> None:
        super().__init__(MAX_HEAD, max_body)
        self._app, self._all = app, connections
        self._transport: asyncio.Transport | None = None
        self._current: Responder | None = None
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
        self.received.clear()
        current, self._current = self._current, None
        if current is not None and current.on_disconnect is not None:
            current.on_disconnect()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if not self._closing:
            self.receive(data)
            self._next()

    def close(self) -> None:
        """Drop the connection."""
        self._closing = True
        self.received.clear()
        if self._transport is not None:
            self._transport.close()

    # Receiver

    def awaits_body(self) -> None:
        """Ask for the body."""
        self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # for Responder

    def write(self, data: bytes) -> None:
        """Send bytes; silently nothing when the client is gone."""
        if self._transport is not None:
            self._transport.write(data)

    def answered(self, keep_alive: bool) -> None:
        """The answer to the current request is complete."""
        self._current = None
        if keep_alive:
            self._next()
        else:
            self.close()

    def _next(self) -> None:
        if self._serving:
            return  # answered within the call below: its loop goes on
        self._serving = True
        try:
            while self._current is None and self.received:
                request = self.received.popleft()
                self._serve(request, Responder(self, request.keep_alive))
        finally:
            self._serving = False
        if self._current is None and self.refusal is not None and not self._closing:
            # What cannot be read on is answered, and the rest of the connection dropped.
            Responder(self, keep_alive=False).send_error(self.refusal)

    def _serve(self, request: Request, responder: Responder) -> None:
        self._current = responder
        try:
            self._app(request, responder)
        except ApiError as error:
            responder.send_error(error)
