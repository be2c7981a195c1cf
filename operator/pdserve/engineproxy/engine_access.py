"""Requests of the proxy to its engine, and to whatever else answers HTTP near it.

`EngineAccess` knows whether the engine is up: it asks for its health every `PERIOD` seconds, and at
once when a request to it broke.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from pdserve.http1.client import Exchange
from pdserve.http1.connect import connected
from pdserve.http1.errors import Headers
from pdserve.http1.listener import UpstreamError
from pdserve.http1.pool import Pool
from pdserve.http1.stalls import within

PERIOD: Final = 1.0
HEALTH_SECONDS: Final = 5.0
SILENCES: Final = 3
"""Health requests without an answer in time, one after another, that make an engine count as down:
a busy engine answers late."""
MAX_ANSWER: Final = 4 << 20

log = logging.getLogger(__name__)


async def get(
    endpoint: str, path: str, seconds: float, max_bytes: int = MAX_ANSWER
) -> tuple[int, bytes]:
    """Status and body of a GET on a connection of its own.

    Raises:
        UpstreamError: no connection, no whole answer in `seconds`, or more than `max_bytes`.
    """
    parts = urlsplit(endpoint)
    exchange = await connected(parts.hostname or "", parts.port or 80, seconds)
    taken: list[bytes] = []

    def take(piece: bytes) -> None:
        taken.append(piece)
        if sum(map(len, taken)) > max_bytes:
            exchange.abort()

    lines = (f"GET {path} HTTP/1.1", f"host: {parts.netloc}", "connection: close", "", "")
    try:
        async with within(seconds):
            await exchange.request("\r\n".join(lines).encode(), seconds)
            await exchange.relay(take, seconds)
    except TimeoutError as error:
        raise UpstreamError("timeout", f"no whole answer within {seconds:g} s") from error
    finally:
        exchange.abort()
    return exchange.status, b"".join(taken)


class EngineAccess:
    """The engine of this pod."""

    def __init__(self, url: str, health_path: str) -> None:
        """Nothing is asked until `watch`."""
        self.url = url
        self.up = False
        self.why = "the engine was not asked yet"
        """Why it is not up; empty while it is."""
        self.lost: Callable[[], None] = lambda: None
        """Called when an engine that was up is up no more."""
        self._health_path = health_path
        self._pool = Pool()
        self._silent = 0
        self._look = asyncio.Event()

    async def post(self, path: str, body: bytes, headers: Headers, patience: float) -> Exchange:
        """POST, and wait at most `patience` seconds for the reply's head.

        Give the exchange back with `done`.

        Raises:
            UpstreamError: the engine cannot be reached, went away, or was silent for too long.
        """
        try:
            return await self._pool.post(self.url, path, body, headers, patience)
        except UpstreamError:
            self.suspect()
            raise

    def done(self, exchange: Exchange) -> None:
        """Keep the connection if its reply is complete, else cut it: the engine aborts."""
        self._pool.done(self.url, exchange)

    def suspect(self) -> None:
        """Ask for its health at once."""
        self._look.set()

    async def watch(self) -> None:
        """Keep `up` right, until cancelled."""
        while True:
            self._look.clear()
            await self._ask()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PERIOD):
                    await self._look.wait()

    def close(self) -> None:
        """Close idle connections."""
        self._pool.close()

    async def _ask(self) -> None:
        try:
            status, _ = await get(self.url, self._health_path, HEALTH_SECONDS)
        except UpstreamError as error:
            self._silent = self._silent + 1 if error.kind == "timeout" else SILENCES
            if self._silent >= SILENCES:
                self._set(f"the engine does not answer: {error}")
            return
        self._silent = 0
        self._set("" if status == 200 else f"the engine says {status} to {self._health_path}")

    def _set(self, why: str) -> None:
        was, self.up, self.why = self.up, not why, why
        if was and why:
            log.error("engine lost: %s", why)
            self.lost()
        elif not was and not why:
            log.info("engine up at %s", self.url)
