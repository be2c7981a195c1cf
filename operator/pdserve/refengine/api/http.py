"""HTTP/1.1 server side on httptools: one object per connection, one request at a time.

Gives the application a `HttpRequest` and a `Responder`; enforces the body limit before a byte of
the rest is kept; tells the responder when the client has gone. Pipelined requests wait in order.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import cast

import httptools
import orjson

from pdserve.refengine.errors import ApiError

JSON = "application/json"
MAX_HEADERS = 64 << 10
_REASONS = {s.value: s.phrase for s in HTTPStatus} | {499: "Client Closed Request"}


@dataclass(slots=True)
class HttpRequest:
    """One complete request; header names in lower case."""

    method: str = ""
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


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
        lines = self._head(status, headers, kind)
        lines.append(f"content-length: {len(body)}\r\n\r\n")
        self._finish("".join(lines).encode("latin-1") + body)

    def send_json(
        self, status: int, value: object, headers: Mapping[str, str] | None = None
    ) -> None:
        """A whole JSON answer."""
        self.send(status, orjson.dumps(value), headers)

    def send_error(self, error: ApiError, headers: Mapping[str, str] | None = None) -> None:
        """OpenAI's error object."""
        self.send_json(error.status, error.body(), headers)

    def start(self, headers: Mapping[str, str], kind: str, first: bytes) -> None:
        """Status 200 and the first piece of a stream, in one write."""
        lines = self._head(200, headers, kind)
        lines.append("transfer-encoding: chunked\r\n\r\n")
        self._connection.write("".join(lines).encode("latin-1") + _chunk(first))

    def write(self, data: bytes) -> None:
        """One more piece."""
        self._connection.write(_chunk(data))

    def end(self, data: bytes = b"") -> None:
        """The last piece."""
        self._finish((_chunk(data) if data else b"") + b"0\r\n\r\n")

    def _head(self, status: int, headers: Mapping[str, str] | None, kind: str) -> list[str]:
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\n", f"content-type: {kind}\r\n"]
        lines += [f"{name}: {value}\r\n" for name, value in (headers or {}).items()]
        if not self._keep_alive:
            lines.append("connection: close\r\n")
        return lines

    def _finish(self, data: bytes) -> None:
        self.done = True
        self.on_disconnect = None
        self._connection.write(data)
        self._connection.answered(self._keep_alive)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


App = Callable[[HttpRequest, Responder], None]


class HttpConnection(asyncio.Protocol):
    """Parser and writer of one client connection."""

    def __init__(self, app: App, max_body: int, connections: set[HttpConnection]) -> None:
        self._app, self._max_body, self._all = app, max_body, connections
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._request = HttpRequest()
        self._body: list[bytes] = []
        self._size = self._header_size = 0
        self._refused: ApiError | None = None
        self._waiting: deque[tuple[HttpRequest, bool]] = deque()
        self._current: Responder | None = None

    @property
    def busy(self) -> bool:
        """An answer is being written."""
        return self._current is not None

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
        self._waiting.clear()
        current, self._current = self._current, None
        if current is not None and current.on_disconnect is not None:
            current.on_disconnect()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._refused is not None:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            self._refuse(self._refused or ApiError(400, "malformed HTTP request"))
        except httptools.HttpParserError as error:
            self._refuse(ApiError(400, f"malformed HTTP request: {error}"))

    def close(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.close()

    # for Responder

    def write(self, data: bytes) -> None:
        """Send bytes; silently nothing when the client is gone."""
        if self._transport is not None:
            self._transport.write(data)

    def answered(self, keep_alive: bool) -> None:
        """The answer to the current request is complete."""
        self._current = None
        if not keep_alive:
            self.close()
        elif self._waiting:
            self._dispatch(*self._waiting.popleft())

    # httptools

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._request, self._body, self._size, self._header_size = HttpRequest(), [], 0, 0

    def on_url(self, url: bytes) -> None:
        """Called by the parser."""
        self._request.path += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self._header_size += len(name) + len(value)
        if self._header_size > MAX_HEADERS:
            self._refused = ApiError(431, f"more than {MAX_HEADERS} bytes of headers")
            raise ValueError("headers")
        self._request.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        length = self._request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_body:
            self._too_large()
        if self._request.headers.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        """Called by the parser."""
        self._size += len(data)
        if self._size > self._max_body:
            self._too_large()
        self._body.append(data)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self._parser.should_upgrade():
            # The parser would skip the body, so ignoring the offer is not possible.
            self._refused = ApiError(
                400, "send the request without an Upgrade header: only HTTP/1.1 is spoken here"
            )
            raise ValueError("upgrade")
        request = self._request
        request.method = self._parser.get_method().decode("latin-1")
        request.path = request.path.partition("?")[0]
        request.body = b"".join(self._body)
        self._body = []
        keep_alive = self._parser.should_keep_alive()
        if self._current is None:
            self._dispatch(request, keep_alive)
        else:
            self._waiting.append((request, keep_alive))

    def _too_large(self) -> None:
        self._refused = ApiError(
            413, f"request body is larger than {self._max_body} bytes", code="too_large"
        )
        raise ValueError("body")

    def _dispatch(self, request: HttpRequest, keep_alive: bool) -> None:
        responder = Responder(self, keep_alive)
        self._current = responder
        try:
            self._app(request, responder)
        except ApiError as error:
            responder.send_error(error)

    def _refuse(self, error: ApiError) -> None:
        """Answer what cannot be read on; the rest of the connection is dropped."""
        self._refused = error
        if self._current is None:
            Responder(self, keep_alive=False).send_error(error)
        else:
            self.close()
