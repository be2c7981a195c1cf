"""HTTP/1.1 server side: listens, keeps the connections, ends the slow ones, stops gracefully.

Knows nothing of OpenAI or P/D. Neighbours: `connection` serves one client, `reply` is the answer
to a request, `client` is the other side; handlers are the gateway's `app` and the engine's
`api.handlers`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable
from typing import Any

from pdserve.http1.callbacks import as_protocol
from pdserve.http1.connection import ClientConnection, Handler, Screen, Serving
from pdserve.http1.limits import BodyMemory, ClientLimits
from pdserve.http1.listen import listening


class HttpServer:
    """Listens, keeps the connections, closes the slow ones, and stops gracefully."""

    def __init__(
        self,
        handler: Handler,
        limits: ClientLimits,
        report: Callable[[Exception], None],
        screen: Screen | None = None,
        keeps: Callable[[str], int] | None = None,
    ) -> None:
        """Make a server that does not listen yet.

        Args:
            handler: answers a request: at once or by callbacks (returns None), or as a coroutine.
            limits: of every connection, and of all bodies together.
            report: called with each exception of the handler that is no ApiError.
            screen: refuses a request by its head, before its body.
            keeps: bytes of a body that are stored, by path; None: as many as `limits.body`.
        """
        self.memory = BodyMemory(limits.memory)
        self._limits = limits
        stored = keeps or (lambda path: limits.body)
        self._serving = Serving(handler, limits, report, screen, stored, self.memory)
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def draining(self) -> bool:
        """It is being stopped."""
        return self._serving.draining

    @property
    def connections(self) -> set[ClientConnection]:
        """Those that are open."""
        return self._serving.connections

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listen on TCP, with `tls` by HTTPS; returns the port (useful with port 0).

        Raises:
            OSError: the address cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: as_protocol(ClientConnection(self._serving)), **listening(host, port),
            backlog=2048, ssl=tls,
        )  # fmt: skip
        self._sweeper = loop.create_task(self._sweep())
        # A list with uvloop, not the tuple that type hints say.
        listens: Any = self._server
        return int(listens.sockets[0].getsockname()[1])

    async def stop(self, grace: float) -> int:
        """Stop accepting, let requests in progress finish; returns how many had to be cut."""
        self._serving.draining = True
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
            await asyncio.sleep(self._limits.sweep)
            now = time.perf_counter()
            for connection in tuple(self.connections):
                try:
                    connection.expire(now)
                except Exception as error:
                    # One connection's fault; the others are swept on.
                    self._serving.report(error)
                    connection.abort()
