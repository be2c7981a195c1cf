"""HTTP/1.1 server side at protocol level: one task per request, `Reply` to bytes.

A client that goes away cancels its task. Replies are sent whole or streamed in chunks with
back-pressure. Knows nothing of OpenAI or P/D. Neighbours: `receive` and `send` read and frame,
`client` is the other side, the gateway's `app` a handler.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from pdserve.http1.errors import ApiError, Headers
from pdserve.http1.limits import BodyMemory, ClientLimits
from pdserve.http1.listen import listening
from pdserve.http1.receive import HttpRequest, Receiver, no_room
from pdserve.http1.send import LAST_CHUNK, STATUS_LINES, chunk

_STREAMED: Headers = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
"""With every stream: proxies must pass it on as it comes (nginx buffers unless told so)."""
Handler = Callable[[HttpRequest, "Reply"], Awaitable[None]]
Screen = Callable[[str, str, dict[bytes, bytes], str], ApiError | None]
"""`(method, path, headers, client address)` -> why the request is refused, or None."""
SMALL_HEAD = 4 << 10
LINGER_SECONDS = 5.0
"""How long a refused client may go on sending before it is cut."""


class Reply:
    """The answer to one request: `send` once, or `start`, `write`..., `end`."""

    def __init__(self, connection: ClientConnection, request: HttpRequest) -> None:
        self.connection = connection
        """What it is sent over."""
        self._close = not request.keep_alive
        self._bodiless = request.method == "HEAD"
        self.status = 0
        """0 until a head was written."""
        self._chunked = request.http_1_1
        self.started = False
        self.ended = False
        self.headers: Headers = ()
        """Sent with whatever head comes (the request id, who served it)."""

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

    def start(self, status: int, content_type: str, first: bytes, headers: Headers = ()) -> None:
        """Begin a stream: head and first piece leave in one write."""
        if self._chunked:
            headers = (*headers, (b"transfer-encoding", b"chunked"))
            first = chunk(first)
        else:
            self._close = True
        self._write_head(status, content_type, (*headers, *_STREAMED), first)

    def write(self, data: bytes) -> None:
        """Another piece of a started stream."""
        if self._chunked:
            data = chunk(data)
        self.connection.send(data)

    def end(self) -> None:
        """The stream is complete."""
        if self._chunked:
            self.connection.send(LAST_CHUNK)
        self._finish()

    def grows(self, size: int) -> bool:
        """The request takes so many more bytes than its body; False: there is no room."""
        return self.connection.take(size)

    def body_done(self) -> None:
        """Nothing of the request's body is kept any more."""
        self.connection.free_served()

    def on_flow(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """What to call when the client reads too slowly, and when it has caught up."""
        self.connection.set_flow(pause, resume)

    def _write_head(self, status: int, content_type: str, headers: Headers, rest: bytes) -> None:
        self.started = True
        self.status = status
        close = self._close or self.connection.server.draining
        self._close = close
        head = [STATUS_LINES[status], b"content-type: ", content_type.encode(), b"\r\n"]
        for name, value in (*self.headers, *headers):
            head += (name, b": ", value, b"\r\n")
        head.append(b"connection: close\r\n\r\n" if close else b"\r\n")
        head.append(rest)
        self.connection.send(b"".join(head))

    def _finish(self) -> None:
        self.ended = True
        self.connection.finished(self._close)


class ClientConnection(Receiver, asyncio.Protocol):
    """One client connection; requests on it are served one after another."""

    def __init__(self, server: HttpServer) -> None:
        super().__init__(server.limits.head, server.limits.body)
        self.server = server
        self.deadline = time.perf_counter() + server.limits.idle
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._reply: Reply | None = None
        self._flow: tuple[Callable[[], None], Callable[[], None]] | None = None
        self._close_after = False
        self._address = ""
        self._head_kept = 0
        self._receiving = 0
        """Bytes counted for the head and the body that are coming, the bodies that wait, the one
        served."""
        self._waiting: deque[int] = deque()
        self._serving = 0

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self._transport = transport  # type: ignore[assignment]  # TCP gives a Transport
        self.server.connections.add(self)
        peer = transport.get_extra_info("peername")
        self._address = peer[0] if isinstance(peer, tuple) else ""

    def data_received(self, data: bytes) -> None:
        """Bytes from the client; also while a request is in progress (pipelining)."""
        if self.refusal is not None:
            return  # being answered, or just answered
        self.receive(data)
        self._count_head_kept()
        if len(self.received) > self.server.limits.pipelined:
            self.refuse(ApiError(400, "too many pipelined requests", code="bad_request"))
        self._next()

    def eof_received(self) -> bool:
        """The client closed its sending side: it is gone."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: cancel what runs for it."""
        self.server.connections.discard(self)
        self._transport = None
        self.server.memory.free(
            self._head_kept + self._receiving + sum(self._waiting) + self._serving
        )
        self._head_kept = self._receiving = self._serving = 0
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self.deadline = time.perf_counter() + self.server.limits.write_stall
        if self._flow is not None:
            self._flow[0]()

    def resume_writing(self) -> None:
        """The client caught up."""
        self.deadline = float("inf")
        if self._flow is not None:
            self._flow[1]()

    # --- Receiver ---

    def began(self) -> None:
        """A request starts; while another is served, its time does not run yet."""
        if self._task is None:
            self.deadline = time.perf_counter() + self.server.limits.receive

    def awaits_body(self) -> None:
        """Ask for the body, unless a reply is being written."""
        if self._task is None:
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def screened(self, method: str, path: str, headers: dict[bytes, bytes]) -> ApiError | None:
        """The service's word on the head."""
        if self.server.screen is None:
            return None
        return self.server.screen(method, path, headers, self._address)

    def keeps(self, path: str) -> int:
        """Bodies are for the paths that take one."""
        takes = self.server.takes_body
        return self.server.limits.body if takes is None or path in takes else 0

    def has_room(self, size: int) -> bool:
        """Count a piece of the body."""
        small, memory = self._receiving + size <= self.server.limits.small, self.server.memory
        if self._transport is None or not memory.take(size, small=small, arriving=True):
            memory.free(self._receiving)
            self._receiving = 0
            return False
        self._receiving += size
        return True

    def complete(self) -> None:
        """The body that was coming waits now."""
        self._waiting.append(self._receiving)
        self._receiving = 0

    # --- used by Reply and HttpServer ---

    def take(self, size: int) -> bool:
        """See `Reply.grows`."""
        small, memory = self._serving + size <= self.server.limits.small, self.server.memory
        if self._transport is None or not memory.take(size, small=small, arriving=False):
            return False
        self._serving += size
        return True

    def free_served(self) -> None:
        """See `Reply.body_done`."""
        self.server.memory.free(self._serving)
        self._serving = 0

    def send(self, data: bytes) -> None:
        """Write to the client, if it is still there."""
        if self._transport is not None:
            self._transport.write(data)

    def set_flow(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """See `Reply.on_flow`."""
        self._flow = (pause, resume)

    def finished(self, close: bool) -> None:
        """The reply was written."""
        self._flow = None
        self.free_served()
        self._close_after = close

    @property
    def busy(self) -> bool:
        """A request is being served or received in full."""
        return self._task is not None or bool(self.received)

    def close(self) -> None:
        """Close after what was written has left."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once (cancels the request in progress)."""
        if self._transport is not None:
            self._transport.abort()

    # --- internals ---

    def _count_head_kept(self) -> None:
        """An unfinished head takes memory like a body, from `SMALL_HEAD` bytes on."""
        kept, memory = self.unfinished_head, self.server.memory
        memory.free(self._head_kept)
        self._head_kept = 0
        if self._transport is None or not kept:
            return
        if memory.take(kept, small=kept <= SMALL_HEAD, arriving=True):
            self._head_kept = kept
        else:
            self.refuse(no_room())

    def _next(self) -> None:
        if self._task is not None or self._transport is None:
            return
        if self.received:
            request = self.received.popleft()
            self._serving = self._waiting.popleft()
            self.deadline = float("inf")
            self._reply = Reply(self, request)
            self._task = asyncio.get_running_loop().create_task(self._serve(request, self._reply))
        elif self.refusal is not None:
            request = HttpRequest(self.method, "", {}, b"", 0.0, keep_alive=False, http_1_1=True)
            Reply(self, request).error(self.refusal)
            self._linger()

    def _linger(self) -> None:
        """Close after a refusal, but go on reading (and dropping) what the client still sends.

        A socket closed with unread bytes is reset, and a reset destroys the reply that a client
        reads only after it has sent its body, as most do.
        """
        if self._transport is not None:
            if self._transport.can_write_eof():  # TLS cannot: there the deadline ends it
                self._transport.write_eof()
            self.deadline = time.perf_counter() + LINGER_SECONDS

    async def _serve(self, request: HttpRequest, reply: Reply) -> None:
        try:
            await self.server.handler(request, reply)
        except Exception as error:
            # The last line of defence: a bug must cost one request, not the process.
            self.server.report(error)
            reply.error(ApiError(500, "internal error", kind="server_error", code="internal"))
        finally:
            self._task = None
            self._reply = None
        if not reply.ended:
            self.abort()
        elif self._close_after:
            self.close()
        else:
            self.deadline = time.perf_counter() + self.server.limits.idle
            self._next()


class HttpServer:
    """Listens, keeps the connections, closes the slow ones, and stops gracefully."""

    def __init__(
        self,
        handler: Handler,
        limits: ClientLimits,
        report: Callable[[Exception], None],
        screen: Screen | None = None,
        takes_body: Collection[str] | None = None,
    ) -> None:
        """`screen` refuses a request by its head; `takes_body`: paths, None: all."""
        self.handler = handler
        self.screen = screen
        self.takes_body = takes_body
        self.memory = BodyMemory(limits.memory)
        self.limits = limits
        self.report = report
        self.draining = False
        self.connections: set[ClientConnection] = set()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listen, with `tls` by HTTPS; returns the port (useful with port 0)."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: ClientConnection(self), **listening(host, port), backlog=2048, ssl=tls
        )
        self._sweeper = loop.create_task(self._sweep())
        address: Any = self._server.sockets[0].getsockname()
        return int(address[1])

    async def stop(self, grace: float) -> int:
        """Stop accepting, let requests in progress finish; returns how many had to be cut."""
        self.draining = True
        if self._server is not None:
            self._server.close()
        until = time.perf_counter() + grace
        while True:
            for connection in [c for c in self.connections if not c.busy]:
                connection.close()
            if not self.connections or time.perf_counter() >= until:
                break
            await asyncio.sleep(0.02)
        cut = [c for c in self.connections if c.busy]
        for connection in list(self.connections):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
        return len(cut)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self.limits.sweep)
            now = time.perf_counter()
            for connection in [c for c in self.connections if c.deadline < now]:
                connection.abort()
