"""One client's connection: its requests are served one after another, within limits.

A handler answers at once, or later from callbacks of its own (it returns None), or it is a
coroutine and gets a task, which ends when the client goes away. What a client does to its
connection is bounded: bytes and requests that wait, seconds until a request has arrived, seconds
without taking what was written. An error of a handler costs its own request.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from pdserve.http1.errors import ApiError
from pdserve.http1.limits import BodyMemory, ClientLimits
from pdserve.http1.receive import HttpRequest, Receiver, no_room
from pdserve.http1.reply import Reply
from pdserve.http1.resets import ResetWatch

Handler = Callable[[HttpRequest, Reply], Awaitable[None] | None]
Screen = Callable[[str, str, dict[bytes, bytes], str], ApiError | None]
"""`(method, path, headers, client address)` -> why the request is refused, or None."""
SMALL_HEAD = 4 << 10
LINGER_SECONDS = 5.0
"""How long a refused client may go on sending before it is cut."""


@dataclass(slots=True, eq=False)
class Serving:
    """What the connections of one server share."""

    handler: Handler
    limits: ClientLimits
    report: Callable[[Exception], None]
    screen: Screen | None
    keeps: Callable[[str], int]
    memory: BodyMemory
    draining: bool = False
    connections: set[ClientConnection] = field(default_factory=set)


class ClientConnection(Receiver):
    """One client connection."""

    def __init__(self, serving: Serving) -> None:
        limits = serving.limits
        super().__init__(limits.head, limits.body)
        self._server, self._limits, self._memory = serving, limits, serving.memory
        self._deadline = time.perf_counter() + limits.idle
        self._arriving = False
        """A request has begun to arrive, and is not complete."""
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._reply: Reply | None = None
        self._task: asyncio.Task[None] | None = None
        self._flow: tuple[Callable[[], None], Callable[[], None]] | None = None
        self._starting = self._stalled = self._refused = self._close_after = False
        self._unread: ResetWatch | None = None
        self._address = ""
        self._head_kept = 0
        self._receiving = 0
        """Bytes counted for the head and the body that are coming, the bodies that wait, the one
        served."""
        self._waiting: deque[int] = deque()
        self._serving = 0

    # --- StreamCallbacks ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self._transport = transport  # type: ignore[assignment]  # TCP gives a Transport
        self._server.connections.add(self)
        peer = transport.get_extra_info("peername")
        self._address = peer[0] if isinstance(peer, tuple) else ""

    def data_received(self, data: bytes) -> None:
        """Bytes from the client; also while a request is in progress (pipelining)."""
        if self.refusal is not None:
            return  # being answered, or just answered
        self.receive(data)
        self._count_head_kept()
        self._next()

    def eof_received(self) -> bool:
        """The client closed its sending side: it is gone, perhaps without its last reply."""
        if self._unread is None or self._reply is not None:
            return False
        self._unread.look()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: end what runs for it."""
        self._server.connections.discard(self)
        self._transport = None
        self.no_more()
        self._memory.free(self._head_kept + self._receiving + sum(self._waiting) + self._serving)
        self._head_kept = self._receiving = self._serving = 0
        self._waiting.clear()
        self.received.clear()
        reply, self._reply = self._reply, None
        unread, self._unread = self._unread, None
        if self._task is not None:
            self._task.cancel()
        if reply is not None:
            _leave(reply)
        elif exc is not None and unread is not None:
            unread.tell()

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self._stalled = True
        self._deadline = time.perf_counter() + self._limits.write_stall
        if self._flow is not None:
            self._flow[0]()

    def resume_writing(self) -> None:
        """The client caught up."""
        self._stalled = False
        self._deadline = float("inf")
        if self._reply is None:
            self._rest()
        if self._flow is not None:
            self._flow[1]()
        self._next()

    # --- Receiver ---

    def began(self) -> None:
        """A request starts; while another is served, its time does not run yet."""
        self._arriving = True
        if self._reply is None:
            self._rest()

    def awaits_body(self) -> None:
        """Ask for the body, unless a reply is being written."""
        if self._reply is None:
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def screened(self, method: str, path: str, headers: dict[bytes, bytes]) -> ApiError | None:
        """What the service says of the head."""
        screen = self._server.screen
        return None if screen is None else screen(method, path, headers, self._address)

    def keeps(self, path: str) -> int:
        """Most bytes of a body that are kept; bodies are for the paths that take one."""
        return self._server.keeps(path)

    def has_room(self, size: int) -> bool:
        """Count a piece of the body."""
        total, memory = self._receiving + size, self._memory
        small = total <= self._limits.small
        if self._transport is None or not memory.take(size, small=small, arriving=True):
            memory.free(self._receiving)
            self._receiving = 0
            return False
        self._receiving = total
        return True

    def failed(self, error: Exception) -> None:
        """A bug of ours on the way of a request, and no fault of its client."""
        self._server.report(error)
        self.refuse(ApiError(500, "internal error", kind="server_error", code="internal"))

    def complete(self) -> None:
        """Serve it, or let it wait if there is room for one more."""
        self._arriving = False
        self._waiting.append(self._receiving)
        self._receiving = 0
        self._next()
        if not self.received:
            return
        limits = self._limits
        if len(self.received) > limits.pipelined or sum(self._waiting) > limits.waiting:
            self.refuse(
                ApiError(
                    400,
                    f"more than {limits.pipelined} requests or {limits.waiting} bytes wait on this "
                    "connection; await the answers",
                    code="too_many_pipelined",
                )
            )

    # --- used by Reply and HttpServer ---

    @property
    def draining(self) -> bool:
        """The server stops."""
        return self._server.draining

    def take(self, size: int) -> bool:
        """Count `size` more bytes of memory; False: there is no room. See `Reply.grows`."""
        small, memory = self._serving + size <= self._limits.small, self._memory
        if self._transport is None or not memory.take(size, small=small, arriving=False):
            return False
        self._serving += size
        return True

    def free_served(self) -> None:
        """See `Reply.body_done`."""
        self._memory.free(self._serving)
        self._serving = 0

    def send(self, data: bytes) -> None:
        """Write to the client, if it is still there."""
        if self._transport is not None:
            self._transport.write(data)

    def set_flow(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """See `Reply.on_flow`."""
        self._flow = (pause, resume)
        if self._stalled:
            pause()

    def finished(self, reply: Reply, close: bool) -> None:
        """The reply was written."""
        if self._transport is None or self._transport.is_closing():
            if reply.on_unread is not None:
                reply.on_unread()
            return
        if reply is not self._reply:
            return
        self._flow = None
        self.free_served()
        self._close_after = close
        if reply.on_unread is not None:
            self._unread = ResetWatch(self._transport, reply.on_unread)
        if self._task is None:
            self._answered()

    @property
    def busy(self) -> bool:
        """A request is being served or received in full."""
        return self._reply is not None or bool(self.received)

    def close(self) -> None:
        """Close after what was written has left."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once (ends the request in progress)."""
        if self._transport is not None:
            self._transport.abort()

    def expire(self, now: float) -> None:
        """End the connection if its time is over; `now` is of `time.perf_counter`."""
        if self._deadline >= now:
            return
        if not (self._arriving and self._limits.tells_late) or self._stalled or self._refused:
            self.abort()
            return
        self.refuse(
            ApiError(
                408,
                f"the request was not complete {self._limits.receive:g} s after its first byte",
                code="request_timeout",
            )
        )
        self._next()

    # --- internals ---

    def _rest(self) -> None:
        """Nothing is served: the next request must come, or come to its end, in time."""
        if not self._stalled:
            limits = self._limits
            seconds = limits.receive if self._arriving else limits.idle
            self._deadline = time.perf_counter() + seconds

    def _count_head_kept(self) -> None:
        """An unfinished head takes memory like a body, from `SMALL_HEAD` bytes on."""
        kept, memory = self.unfinished_head, self._memory
        if not kept and not self._head_kept:
            return
        memory.free(self._head_kept)
        self._head_kept = 0
        if self._transport is None or not kept:
            return
        if memory.take(kept, small=kept <= SMALL_HEAD, arriving=True):
            self._head_kept = kept
        else:
            self.refuse(no_room())

    def _next(self) -> None:
        if self._starting or not self._free():
            return  # what is answered inside the call below goes on in its loop
        self._starting = True
        try:
            while self._free() and self.received and not self._stalled:
                self._start(self.received.popleft(), self._waiting.popleft())
        finally:
            self._starting = False
        if self._free() and self.refusal is not None and not self.received:
            self._answer_refusal(self.refusal)

    def _free(self) -> bool:
        """No request is being answered."""
        return self._reply is None

    def _start(self, request: HttpRequest, size: int) -> None:
        self._serving = size
        self._deadline = float("inf")
        self._unread = None
        reply = self._reply = Reply(self, request)
        try:
            work = self._server.handler(request, reply)
        except Exception as error:
            self._failed(reply, error)
            return
        if work is not None:
            self._task = self._loop.create_task(self._run(work, reply))

    async def _run(self, work: Awaitable[None], reply: Reply) -> None:
        try:
            await work
        except Exception as error:
            self._failed(reply, error)
        finally:
            self._task = None
        if not reply.ended:
            self.abort()
        elif reply is self._reply:
            self._answered()

    def _failed(self, reply: Reply, error: Exception) -> None:
        """Answer an error of the handler: a bug must cost one request, not the process."""
        if not isinstance(error, ApiError):
            self._server.report(error)
            error = ApiError(500, "internal error", kind="server_error", code="internal")
        try:
            _leave(reply)
        finally:
            reply.error(error)

    def _answered(self) -> None:
        """The reply is complete; the next request has its turn."""
        self._reply = None
        if not self._close_after:
            self._rest()
            self._next()
        elif self.refusal is not None:
            self._linger()
        else:
            self.close()

    def _answer_refusal(self, refusal: ApiError) -> None:
        if not self._refused:
            request = HttpRequest(self.method, "", {}, b"", 0.0, keep_alive=False, http_1_1=True)
            Reply(self, request).error(refusal)
            self._linger()

    def _linger(self) -> None:
        """Close, but go on reading (and dropping) for a while what the client still sends.

        A socket closed with unread bytes is reset, and a reset destroys the reply that a client
        reads only after it has sent its body, as most do.
        """
        self._refused = True
        if self._transport is None:
            return
        if self._transport.can_write_eof():  # TLS cannot: there the deadline ends it
            self._transport.write_eof()
        self._deadline = time.perf_counter() + LINGER_SECONDS


def _leave(reply: Reply) -> None:
    leave, reply.on_leave = reply.on_leave, None
    if leave is not None:
        leave()
