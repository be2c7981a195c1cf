"""Keep-alive connections of the client side, reused for one request after another.

A reused connection that the instance had closed meanwhile is replaced once, silently; every other
failure is an `UpstreamError` with its kind. Neighbour: `client` is one connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import urlsplit

from pdserve.http1.client import Exchange, UpstreamError
from pdserve.http1.connect import connected
from pdserve.http1.errors import Headers
from pdserve.http1.sweeper import Sweeper
from pdserve.terms.failures import Failure

IDLE_CLOSED = 1.0
"""A connection lost this many seconds after its last use may have been closed for being idle."""
COPIED = 4 << 10
"""Bytes of a body up to which head and body are joined: one piece is less to send than two."""
MAX_IDLE = 256
"""Kept connections per endpoint."""


class Pool:
    """Connections to every instance, kept for reuse (the most recently used first)."""

    def __init__(self, connect_timeout: float = 1.0) -> None:
        self._connect_timeout = connect_timeout
        self.sweeper = Sweeper()
        self._idle: dict[str, list[Exchange]] = {}
        self._addresses: dict[str, tuple[str, int, bytes]] = {}

    async def post(
        self, endpoint: str, path: str, body: bytes, headers: Headers, patience: float,
        on_interim: Callable[[Exchange], None] | None = None,
    ) -> Exchange:  # fmt: skip
        """POST and wait at most `patience` seconds for the reply's head.

        Give the exchange back with `done` in every case.

        Raises:
            UpstreamError: the instance cannot be reached, is lost, or sends no head in time.
        """
        host, port, name = self._address(endpoint)
        head = [b"POST ", path.encode(), b" HTTP/1.1\r\nhost: ", name]
        head.append(b"\r\ncontent-type: application/json\r\ncontent-length: %d\r\n" % len(body))
        for key, value in headers:
            head += (key, b": ", value, b"\r\n")
        head.append(b"\r\n")
        rest = b""
        if len(body) <= COPIED:
            head.append(body)
        else:
            rest = body
        data = b"".join(head)
        idle = self._idle.get(endpoint, [])
        kept: Exchange | None = None
        while idle and (kept is None or kept.closed):
            kept = idle.pop()
        lost: tuple[Failure, str] | None = None
        if kept is not None and not kept.closed:
            idle_for = time.perf_counter() - kept.idle_since
            try:
                await kept.request(data, patience, on_interim, rest)
                return kept
            except UpstreamError as error:
                # Most likely the instance closed it while idle. Once, and on a new connection: the
                # request may also be what broke it.
                if error.kind != "lost" or kept.status or idle_for < IDLE_CLOSED:
                    raise
                lost = error.kind, str(error)
        try:
            fresh = await connected(host, port, self._connect_timeout, self.sweeper)
        except UpstreamError:
            if lost is None:
                raise
            raise UpstreamError(*lost) from None
        await fresh.request(data, patience, on_interim, rest)
        return fresh

    def done(self, endpoint: str, exchange: Exchange) -> None:
        """Keep the connection if its reply is complete, else cut it."""
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
