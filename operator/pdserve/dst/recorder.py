"""Records the requests of the operator to the API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from pdserve.dst.api_net import FakeTransport
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import Object


class Recorder:
    """A transport that notes what is asked of the API server, and delays some of it."""

    def __init__(self, inner: FakeTransport, delay: Callable[[KubeRequest], float]) -> None:
        """`delay`: seconds before a request reaches the server."""
        self.inner = inner
        self.delay = delay
        self.requests: list[KubeRequest] = []

    async def send(self, request: KubeRequest) -> Object:
        """Note and pass on one request."""
        self.requests.append(request)
        if (seconds := self.delay(request)) > 0:
            await asyncio.sleep(seconds)
        return await self.inner.send(request)

    def stream(self, request: KubeRequest) -> AsyncIterator[Object]:
        """Note and pass on a watch."""
        self.requests.append(request)
        return self.inner.stream(request)

    async def close(self) -> None:
        """Close the inner transport."""
        await self.inner.close()

    def writes(self) -> list[KubeRequest]:
        """The requests that may have changed something."""
        return [
            r
            for r in self.requests
            if r.verb not in ("get", "list", "watch") and "dryRun" not in r.query
        ]
