"""The answer to one request, as bytes: whole, or piece by piece; HEAD and HTTP/1.0 included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pdserve.http1.errors import ApiError, Headers
from pdserve.http1.receive import HttpRequest
from pdserve.http1.send import LAST_CHUNK, STATUS_LINES, chunk

_STREAMED: Headers = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
"""With every stream: proxies must pass it on as it comes (nginx buffers unless told so)."""


class Outlet(Protocol):
    """A client's connection, as a reply uses it."""

    @property
    def draining(self) -> bool:
        """The server stops: a connection ends with its answer."""

    def send(self, data: bytes) -> None:
        """Write to the client, if it is still there."""

    def finished(self, reply: Reply, close: bool) -> None:
        """The reply was written; `close`: the connection ends with it."""

    def take(self, size: int) -> bool:
        """Count `size` more bytes of memory; False: there is no room. See `Reply.grows`."""

    def free_served(self) -> None:
        """See `Reply.body_done`."""

    def set_flow(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """See `Reply.on_flow`."""


class Reply:
    """The answer to one request: `send` once, or `start`, `write`..., `end`; `interim` before.

    `on_leave` is called when the client goes away before the answer is complete, or when the
    handler fails; `on_unread` when the client turns out to have gone away without reading the
    complete answer.
    """

    def __init__(self, connection: Outlet, request: HttpRequest) -> None:
        self._connection = connection
        self._close = not request.keep_alive
        self._bodiless = request.method == "HEAD"
        self.status = 0
        """0 until a head was written."""
        self._chunked = request.http_1_1
        self.started = False
        self.ended = False
        self.headers: Headers = ()
        """Sent with whatever head comes (the request id, who served it)."""
        self.on_leave: Callable[[], None] | None = None
        self.on_unread: Callable[[], None] | None = None

    def interim(self, status: int) -> None:
        """An interim head (RFC 9110, 15.2) before the final one; nothing once that was written."""
        if not self.started:
            self._connection.send(STATUS_LINES[status] + b"\r\n")

    def send(self, status: int, body: bytes, content_type: str, headers: Headers = ()) -> None:
        """A whole reply."""
        length = (b"content-length", str(len(body)).encode())
        # After a HEAD, a body would be read as the next reply (RFC 9110, 9.3.2).
        rest = b"" if self._bodiless else body
        self._write_head(status, content_type, (length, *headers), rest)
        self._finish()

    def error(self, error: ApiError) -> None:
        """An error: as the reply, or as the last event of a stream that already began."""
        if self.ended:
            return
        if not self.started:
            self.send(error.status, error.body(), "application/json", error.headers)
            return
        self._close = True
        self.write(error.event())
        self.end()

    def start(
        self, status: int, content_type: str, first: bytes, headers: Headers = (), *,
        ends: bool = False,
    ) -> None:  # fmt: skip
        """Begin a stream: head and first piece leave in one write; `ends`: all of it does."""
        if self._chunked:
            headers = (*headers, (b"transfer-encoding", b"chunked"))
            first = chunk(first) + LAST_CHUNK if ends else chunk(first)
        else:
            self._close = True
        self._write_head(status, content_type, (*headers, *_STREAMED), first)
        if ends:
            self._finish()

    def write(self, data: bytes) -> None:
        """Another piece of a started stream."""
        if data:
            self._connection.send(chunk(data) if self._chunked else data)

    def end(self, data: bytes = b"") -> None:
        """The stream is complete, with this last piece."""
        if self._chunked:
            data = chunk(data) + LAST_CHUNK
        if data:
            self._connection.send(data)
        self._finish()

    def grows(self, size: int) -> bool:
        """The request takes so many more bytes than its body; False: there is no room."""
        return self._connection.take(size)

    def body_done(self) -> None:
        """Nothing of the request's body is kept any more."""
        self._connection.free_served()

    def on_flow(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """What to call when the client reads too slowly, and when it has caught up."""
        self._connection.set_flow(pause, resume)

    def _write_head(self, status: int, content_type: str, headers: Headers, rest: bytes) -> None:
        self.started = True
        self.status = status
        close = self._close or self._connection.draining
        self._close = close
        head = [STATUS_LINES[status], b"content-type: ", content_type.encode(), b"\r\n"]
        for name, value in (*self.headers, *headers):
            head += (name, b": ", value, b"\r\n")
        head.append(b"connection: close\r\n\r\n" if close else b"\r\n")
        head.append(rest)
        self._connection.send(b"".join(head))

    def _finish(self) -> None:
        self.ended = True
        self.on_leave = None
        self._connection.finished(self, self._close)
