"""Tells a prefill to free KV that no decode will pull (client gone, no decode in time).

Fire and forget: the lease would free it anyway, only later. The reply carries a slot hint.
Neighbour: `pipeline` decides when.
"""

from __future__ import annotations

import asyncio
import time

import orjson

from pdserve.engines.credentials import Credential, authorization
from pdserve.forwarding.hints import parse_hint
from pdserve.forwarding.instance import Instance
from pdserve.gateway.http_client import Pool, UpstreamError
from pdserve.wire.http import PATH_RELEASE

PATIENCE = 2.0


class Releaser:
    """Sends releases in the background; `settle` waits for those under way."""

    def __init__(self, pool: Pool, credential: Credential) -> None:
        self._pool = pool
        self._credential = credential
        self._tasks: set[asyncio.Task[None]] = set()

    def release(self, prefill: Instance, request_id: str) -> None:
        """Start telling `prefill`."""
        task = asyncio.get_running_loop().create_task(self._send(prefill, request_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """Wait for what is under way."""
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _send(self, prefill: Instance, request_id: str) -> None:
        endpoint = prefill.route.endpoint
        body = orjson.dumps({"request_id": request_id})
        headers = (authorization(self._credential),)
        try:
            exchange = await self._pool.post(endpoint, PATH_RELEASE, body, headers, PATIENCE)
        except UpstreamError:
            return  # the lease frees it
        try:
            await exchange.read(PATIENCE)
            prefill.hinted(parse_hint(exchange.headers), time.perf_counter())
        except UpstreamError:
            return
        finally:
            self._pool.done(endpoint, exchange)
