"""Keep-alive connections of the client side, reused for one request after another.

A reused connection that the instance had closed meanwhile is replaced once, silently; every other
failure comes with its kind. Neighbour: `client` is one connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from pdserve.http1.client import Exchange
from pdserve.http1.connect import connected
from pdserve.http1.errors import Headers
from pdserve.http1.listener import Listener, UpstreamError, Waiter
from pdserve.http1.sweeper import Sweeper
from pdserve.terms.failures import Failure

IDLE_CLOSED = 1.0
"""A connection lost this many seconds after its last use may have been closed for being idle."""
CLOSED_BEFORE = 3.0
"""One lost later than so many seconds after a request was sent had taken that request."""
COPIED = 4 << 10
"""Bytes of a body up to which head and body are joined: one piece is less to send than two."""
MAX_IDLE = 256
"""Kept connections per endpoint."""
_KEPT: Final = 1
_FRESH: Final = 2
_OVER: Final = 3


class Call(Listener):
    """One POST to an instance, until its reply has ended or is not wanted any more.

    Exactly one of `headed` and `failed` follows `Pool.send`, and never from within it; for a reply
    that `listen` waits for, `completed` or `failed`. Nothing follows `Pool.end`.
    """

    def __init__(self) -> None:
        self.exchange: Exchange | None = None
        self._endpoint = ""
        self._data = self._rest = b""
        self._patience = 0.0
        self._state = _FRESH
        self._idle_for = 0.0
        self._pool: Pool | None = None
        self._connecting: asyncio.Task[None] | None = None

    def failed(self, kind: Failure, message: str) -> None:
        """The instance cannot be reached, is lost, or is silent for too long."""

    def listen(self, silence: float, *, pieces: bool) -> None:
        """See `Exchange.listen`; after `headed`."""
        if self.exchange is not None:
            self.exchange.listen(self, silence, pieces=pieces)

    def lost(self, kind: Failure, message: str) -> None:
        """The connection says so; one that was kept idle is replaced."""
        kept, self._state = self._state == _KEPT, _FRESH
        exchange, pool = self.exchange, self._pool
        if (
            kept and kind == "lost" and pool is not None and exchange is not None
            and exchange.silent and self._idle_for >= IDLE_CLOSED
            and time.perf_counter() - exchange.idle_since - self._idle_for < CLOSED_BEFORE
        ):  # fmt: skip
            # Most likely the instance closed it while idle. Once, and on a new connection: the
            # request may also be what broke it. One that was begun must not run twice.
            exchange.forget()
            exchange.abort()
            self.exchange = None
            pool.connect(self, (kind, message))
        else:
            self.failed(kind, message)


class Pool:
    """Connections to every instance, kept for reuse (the most recently used first)."""

    def __init__(self, connect_timeout: float = 1.0) -> None:
        self._connect_timeout = connect_timeout
        self.sweeper = Sweeper()
        self._idle: dict[str, list[Exchange]] = {}
        self._addresses: dict[str, tuple[str, int, bytes]] = {}

    def send(
        self, call: Call, endpoint: str, path: str, body: bytes, headers: Headers, patience: float
    ) -> None:
        """POST; `call` hears what becomes of it. Its head must come within `patience` seconds.

        `end` follows in every case.
        """
        name = self._address(endpoint)[2]
        head = [b"POST ", path.encode(), b" HTTP/1.1\r\nhost: ", name]
        head.append(b"\r\ncontent-type: application/json\r\ncontent-length: %d\r\n" % len(body))
        for key, value in headers:
            head += (key, b": ", value, b"\r\n")
        head.append(b"\r\n")
        if len(body) <= COPIED:
            head.append(body)
        else:
            call._rest = body
        call._endpoint, call._patience, call._pool = endpoint, patience, self
        call._data = b"".join(head)
        idle = self._idle.get(endpoint)
        while idle:
            kept = idle.pop()
            if kept.reusable:  # else it is closed, or about to be
                call._state, call.exchange = _KEPT, kept
                call._idle_for = time.perf_counter() - kept.idle_since
                kept.send(call._data, patience, call, call._rest)
                return
        self.connect(call, None)

    def connect(self, call: Call, lost: tuple[Failure, str] | None) -> None:
        """Send a call on a new connection; `lost`: why it has none, told if that fails too."""
        loop = asyncio.get_running_loop()
        call._connecting = loop.create_task(self._connect(call, lost))

    async def _connect(self, call: Call, lost: tuple[Failure, str] | None) -> None:
        host, port, _ = self._address(call._endpoint)
        failed: tuple[Failure, str] | None = None
        try:
            fresh = await connected(host, port, self._connect_timeout, self.sweeper)
        except UpstreamError as error:
            failed = lost or (error.kind, str(error))
        call._connecting = None
        if failed is not None:
            if call._state != _OVER:
                call.failed(*failed)
        elif call._state == _OVER:
            fresh.abort()
        else:
            call.exchange = fresh
            fresh.send(call._data, call._patience, call, call._rest)

    def end(self, call: Call) -> bool:
        """Nothing more is heard of this call; its connection is kept if the reply is complete.

        False: it has no connection, and the instance did not get it.
        """
        call._state = _OVER
        call._data = call._rest = b""
        exchange, call.exchange = call.exchange, None
        if exchange is not None:
            self.done(call._endpoint, exchange)
        elif call._connecting is not None:
            call._connecting.cancel()
        return exchange is not None

    async def post(
        self, endpoint: str, path: str, body: bytes, headers: Headers, patience: float,
        on_interim: Callable[[Exchange], None] | None = None,
    ) -> Exchange:  # fmt: skip
        """POST and wait at most `patience` seconds for the reply's head.

        Give the exchange back with `done` in every case.

        Raises:
            UpstreamError: the instance cannot be reached, is lost, or sends no head in time.
        """
        call = _WaitingCall(Waiter(on_interim=on_interim))
        self.send(call, endpoint, path, body, headers, patience)
        try:
            await call.waiter.told
        except BaseException:
            self.end(call)
            raise
        return call.taken()

    def done(self, endpoint: str, exchange: Exchange) -> None:
        """Keep the connection if its reply is complete, else cut it."""
        exchange.forget()
        idle = self._idle.get(endpoint)
        if idle is None:
            idle = self._idle.setdefault(endpoint, [])
        if exchange.reusable and not exchange.closed and len(idle) < MAX_IDLE:
            exchange.resume_if_paused()
            exchange.idle_since = time.perf_counter()
            idle.append(exchange)
        else:
            exchange.abort()

    def keep_only(self, endpoints: set[str]) -> None:
        """Drop idle connections to instances that left the routes."""
        for endpoint in [e for e in self._idle if e not in endpoints]:
            for exchange in self._idle.pop(endpoint):
                exchange.abort()
            self._addresses.pop(endpoint, None)

    def close(self) -> None:
        """Close every idle connection; those in use are their callers' to give back."""
        self.keep_only(set())

    def _address(self, endpoint: str) -> tuple[str, int, bytes]:
        known = self._addresses.get(endpoint)
        if known is None:
            parts = urlsplit(endpoint)
            known = (parts.hostname or "", parts.port or 80, parts.netloc.encode())
            self._addresses[endpoint] = known
        return known


class _WaitingCall(Call):
    """A call of one that waits for its head."""

    def __init__(self, waiter: Waiter) -> None:
        super().__init__()
        self.waiter = waiter

    def taken(self) -> Exchange:
        """The exchange, which has its head; the call knows it no more."""
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            raise UpstreamError("lost", "the connection is gone")
        exchange.forget()
        return exchange

    def headed(self, exchange: Exchange) -> None:
        """The head is in."""
        self.waiter.headed(exchange)

    def interim(self, exchange: Exchange) -> None:
        """An early head."""
        self.waiter.interim(exchange)

    def failed(self, kind: Failure, message: str) -> None:
        """There is none."""
        self.waiter.lost(kind, message)
