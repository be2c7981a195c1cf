"""Stub prefills and decodes of `gateway.py`, and its clients: protocols that compute nothing.

Both run in the bench's own process, on one event loop and one core. They look for as little as
they can: where a head ends, how long the body is, and whether a stream is complete.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import orjson
from tests.support.gateway_rig import eventually

from pdserve.terms import Role
from pdserve.wire import calls
from pdserve.wire.routes import RouteInstance

EVENTS = 8
"""Events with text in one answer that comes at once."""


def _hint(free: int) -> bytes:
    return (
        f"{calls.HEADER_SLOTS}: {free}/64\r\n{calls.HEADER_FREE_IN_MS}: 0\r\n"
        f"{calls.HEADER_EPOCH}: 1\r\n"
    ).encode()


def _whole(status: str, body: bytes, headers: bytes = b"") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n" + headers + b"\r\n" + body


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(text: str, usage: bool = False) -> bytes:
    value = {"id": "cmpl-0123456789abcdef", "object": "text_completion", "created": 1764500000,
             "model": "reference"}  # fmt: skip
    if usage:
        counts = {"prompt_tokens": 128, "completion_tokens": EVENTS, "total_tokens": 136}
        value |= {"choices": [], "usage": counts}
    else:
        value |= {"choices": [{"index": 0, "text": text, "finish_reason": None}]}
    return b"data: " + orjson.dumps(value) + b"\n\n"


_USAGE = {"prompt_tokens": 128, "completion_tokens": 1, "total_tokens": 129}
_PREFILLED = {
    "id": "cmpl-0123456789abcdef", "object": "text_completion", "created": 1764500000,
    "model": "reference", "usage": _USAGE,
    "choices": [{"index": 0, "text": " one", "finish_reason": "length", "logprobs": None}],
    calls.PARAM_KV: {
        "do_remote_prefill": True, "do_remote_decode": False, "remote_engine_id": "p0",
        "remote_block_ids": list(range(32)), "remote_host": "127.0.0.1", "remote_port": 5600,
        "tp_size": 1,
    },
}  # fmt: skip
PREFILL_REPLY = _whole("200 OK", orjson.dumps(_PREFILLED), _hint(64))
REFUSAL = _whole(
    "503 Service Unavailable",
    b'{"error":{"message":"full"}}',
    f"{calls.HEADER_REJECT}: {calls.REJECT_FULL}\r\n".encode() + _hint(0),
)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n" + _hint(64)
    + b"transfer-encoding: chunked\r\n\r\n"
)  # fmt: skip
_PIECE = _chunk(_event(" token"))
_END = _chunk(_event("", usage=True)) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
STREAM = _STREAM_HEAD + EVENTS * _PIECE + _END
"""A whole stream, written at once."""
_OK = _whole("200 OK", b"{}")


@dataclass
class Behaviour:
    """What all stubs do now."""

    paced: tuple[int, float] | None = None
    """Events of a stream and seconds between two of them; None: all at once."""
    refuse_every: int = 0
    """Prefills refuse every n-th attempt; 0: none."""
    attempts: int = 0
    refused: int = 0


class _Upstream(asyncio.Protocol):
    """One connection of a gateway to a stub."""

    def __init__(self, role: Role, behaviour: Behaviour) -> None:
        self._role, self._behaviour = role, behaviour
        self._head, self._missing = b"", 0
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport
        self._transport = transport  # type: ignore[assignment]  # TCP gives a Transport

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._missing -= len(data)
        else:
            data = self._head + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._head = data
                return
            self._head = b""
            head = data[:end]
            if not head.startswith(b"POST"):
                self._transport.write(_OK)
                return
            self._missing = _length(head) - (len(data) - end - 4)
        if self._missing <= 0:
            self._missing = 0
            self._answer()

    def _answer(self) -> None:
        now = self._behaviour
        if self._role == "prefill":
            now.attempts += 1
            if now.refuse_every and now.attempts % now.refuse_every == 0:
                now.refused += 1
                self._transport.write(REFUSAL)
            else:
                self._transport.write(PREFILL_REPLY)
        elif now.paced is None:
            self._transport.write(STREAM)
        else:
            count, gap = now.paced
            self._transport.write(_STREAM_HEAD + _PIECE)
            self._loop.call_later(gap, self._next, count - 1, gap)

    def _next(self, left: int, gap: float) -> None:
        if left:
            self._transport.write(_PIECE)
            self._loop.call_later(gap, self._next, left - 1, gap)
        else:
            self._transport.write(_END)


def _length(head: bytes) -> int:
    at = head.find(b"content-length: ")
    if at < 0:
        head = head.lower()
        at = head.find(b"content-length:")
        if at < 0:
            return 0
    return int(head[at + 15 :].partition(b"\r\n")[0])


@dataclass
class Stubs:
    """Stub instances, each on a port of its own."""

    behaviour: Behaviour = field(default_factory=Behaviour)
    routes: list[RouteInstance] = field(default_factory=list)
    _servers: list[asyncio.Server] = field(default_factory=list)

    async def start(self, prefills: int, decodes: int) -> Stubs:
        """Listen on free ports."""
        loop = asyncio.get_running_loop()
        roles: list[Role] = ["prefill"] * prefills + ["decode"] * decodes
        for number, role in enumerate(roles):

            def made(role: Role = role) -> _Upstream:
                return _Upstream(role, self.behaviour)

            server = await loop.create_server(made, "127.0.0.1", 0, backlog=1024)
            self._servers.append(server)
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            slots = 64 if role == "prefill" else 512
            self.routes.append(RouteInstance(f"{role[0]}{number}", role, url, slots))
        return self

    def of(self, role: Role) -> list[RouteInstance]:
        """The stubs of one role."""
        return [route for route in self.routes if route.role == role]

    def stop(self) -> None:
        """Stop listening."""
        for server in self._servers:
            server.close()


@dataclass
class Load:
    """Requests in a closed loop; what was seen in the present window."""

    port: int
    request: bytes
    fresh: bool = False
    """A new connection for every request."""
    done: int = 0
    failed: int = 0
    times: list[float] = field(default_factory=list)
    """Seconds of each request."""
    first_failure: bytes = b""
    stopping: bool = False

    def begin_window(self) -> None:
        """Count from here."""
        self.done = self.failed = 0
        self.times = []

    def ended(self, seconds: float) -> None:
        """Count one complete answer."""
        self.done += 1
        self.times.append(seconds)

    def broke(self, what: bytes) -> None:
        """Count one that failed; the first one's bytes are kept for the message."""
        self.failed += 1
        self.first_failure = self.first_failure or what[:300]


class _Client(asyncio.Protocol):
    """One client: the next request follows the answer of the last one."""

    def __init__(self, load: Load, again: Callable[[], None]) -> None:
        self._load, self._again = load, again
        self._tail = b""
        self._begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport
        self._transport = transport  # type: ignore[assignment]  # TCP gives a Transport
        self._ask()

    def _ask(self) -> None:
        self._tail, self._begun = b"", False
        self._sent_at = time.perf_counter()
        self._transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        if not self._begun:
            self._begun = True
            if not data.startswith(b"HTTP/1.1 200"):
                self._load.broke(data)
                self._transport.close()
                return
        self._tail = tail = data[-64:] if len(data) >= 64 else (self._tail + data)[-64:]
        if not tail.endswith(b"\r\n0\r\n\r\n"):
            return
        if b"data: [DONE]" in tail:
            self._load.ended(time.perf_counter() - self._sent_at)
        else:
            self._load.broke(tail)
        if self._load.stopping or self._load.fresh:
            self._transport.close()
        else:
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._load.broke(repr(exc).encode())
        self._again()


class Clients:
    """So many clients at once, until `stop`."""

    def __init__(self, load: Load, count: int) -> None:
        self._load = load
        self._count = count
        self._gone: deque[None] = deque()

    async def start(self) -> None:
        """Connect all of them."""
        for _ in range(self._count):
            await self._connect()

    async def stop(self) -> None:
        """Let each end the request that it is in."""
        self._load.stopping = True
        await eventually(lambda: len(self._gone) >= self._count, "the clients have ended")

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(
                lambda: _Client(self._load, self._left), "127.0.0.1", self._load.port
            )
        except OSError as error:
            self._load.broke(repr(error).encode())
            self._gone.append(None)

    def _left(self) -> None:
        if self._load.stopping:
            self._gone.append(None)
        else:
            task = asyncio.ensure_future(self._connect())
            task.add_done_callback(lambda done: done.exception())


async def direct(prefill: str, decode: str, request: bytes, count: int) -> list[float]:
    """Seconds of both legs sent straight to the instances, one after the other, `count` times."""
    legs = []
    for url in (prefill, decode):
        port = int(url.rpartition(":")[2])
        legs.append(await asyncio.open_connection("127.0.0.1", port))
    times = []
    for _ in range(count):
        began = time.perf_counter()
        for (reader, writer), end in zip(legs, (PREFILL_REPLY, STREAM), strict=True):
            writer.write(request)
            await reader.readexactly(len(end))
        times.append(time.perf_counter() - began)
    for _, writer in legs:
        writer.close()
    return times
