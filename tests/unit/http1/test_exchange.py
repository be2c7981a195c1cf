"""One connection to an instance: which of two things that come together counts."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from pdserve.http1.client import Exchange, UpstreamError

REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


class Wire:
    """A transport that notes its end."""

    aborted = False

    def write(self, data: bytes) -> None:
        """The test answers by itself."""

    def abort(self) -> None:
        self.aborted = True


async def _asked(exchange: Exchange) -> tuple[Wire, asyncio.Task[None]]:
    wire = Wire()
    exchange.connection_made(cast(asyncio.Transport, wire))
    asked = asyncio.create_task(exchange.request(b"GET / HTTP/1.1\r\n\r\n", 3600.0))
    await asyncio.sleep(0)
    return wire, asked


async def test_a_head_that_is_there_when_its_time_is_over_counts() -> None:
    exchange = Exchange()
    wire, asked = await _asked(exchange)
    exchange.data_received(REPLY)
    exchange.overdue()
    await asked
    exchange.data_received(b"ok")
    assert (exchange.status, await exchange.read(3600.0)) == (200, b"ok")
    assert exchange.reusable
    assert not wire.aborted


async def test_without_a_head_its_time_ends_the_connection() -> None:
    exchange = Exchange()
    wire, asked = await _asked(exchange)
    exchange.overdue()
    exchange.overdue()
    with pytest.raises(UpstreamError, match=r"no answer within 3600\.000 s"):
        await asked
    assert wire.aborted
