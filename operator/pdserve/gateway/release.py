"""Tells a prefill to free KV that no decode will pull (client gone, no decode in time).

Fire and forget: the lease would free it anyway, only later. The reply carries a slot hint.
Neighbour: `forwarding.request` decides when.
"""

from __future__ import annotations

import asyncio
import time

from pdserve.engines.credentials import Credential, authorization
from pdserve.engines.flow import EngineFlow, LegRequest
from pdserve.forwarding.instance import Instance
from pdserve.http1.listener import UpstreamError
from pdserve.http1.pool import Pool

PATIENCE = 2.0


class Releaser:
    """Sends releases in the background; `settle` waits for those under way."""

    def __init__(self, pool: Pool, credential: Credential) -> None:
        self._pool = pool
        self._credential = credential
        self._tasks: set[asyncio.Task[None]] = set()

    def release(self, flow: EngineFlow, prefill: Instance, request_id: str) -> None:
        """Start the release at `prefill`, where its engine has a request for that."""
        request = flow.release_leg(request_id)
        if request is None:
            return
        task = asyncio.get_running_loop().create_task(self._send(flow, prefill, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """Wait for what is under way."""
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _send(self, flow: EngineFlow, prefill: Instance, request: LegRequest) -> None:
        endpoint = prefill.route.endpoint
        headers = (*request.headers, authorization(self._credential))
        try:
            exchange = await self._pool.post(
                endpoint, request.path, request.body, headers, PATIENCE
            )
        except UpstreamError:
            return  # the lease frees it
        try:
            await exchange.read(PATIENCE)
            prefill.hinted(flow.read_hint(exchange.headers), time.perf_counter())
        except UpstreamError:
            return
        finally:
            self._pool.done(endpoint, exchange)
