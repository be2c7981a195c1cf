"""A stub prefill that reports what its prefix cache holds, as a test says."""

from __future__ import annotations

import asyncio

from tests.support.stub_engine import StubEngine

from pdserve.http1.receive import HttpRequest
from pdserve.http1.reply import Reply
from pdserve.wire.prefixes import PATH_PREFIXES


class ReportingStub(StubEngine):
    """Each gateway that asks gets the pieces of `report`, then nothing more."""

    report: tuple[bytes, ...] = ()
    asked = 0
    """Gateways that asked."""
    followed = 0
    """Those that read on."""

    async def control(self, request: HttpRequest, reply: Reply) -> None:
        if request.path != PATH_PREFIXES:
            await super().control(request, reply)
            return
        self.asked += 1
        self.followed += 1
        try:
            reply.start(200, "application/jsonl", b"")
            for piece in self.report:
                reply.write(piece)
                await asyncio.sleep(0)
            await asyncio.Event().wait()
        finally:
            self.followed -= 1
