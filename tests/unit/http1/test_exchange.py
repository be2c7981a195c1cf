"""One connection to an instance: what of its bytes is the reply, however they are cut."""

from __future__ import annotations

import asyncio
import itertools
from typing import cast

import pytest

from pdserve.http1.client import MAX_HEAD, Exchange
from pdserve.http1.listener import UpstreamError

REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


class Wire:
    """A transport that notes its end."""

    aborted = False
    unsent = 0

    def get_write_buffer_size(self) -> int:
        return self.unsent

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


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
WHOLE = REPLY + b"ok"


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        pytest.param(WHOLE, True, id="a reply"),
        pytest.param(b"HTTP/1.1 102 P\r\nx: 1\r\n\r\n" * 3 + WHOLE, True, id="interim heads"),
        pytest.param(CHUNKED + b"2\r\nok\r\n0\r\nx: 2\r\nserver: b\r\n\r\n", True, id="trailers"),
        pytest.param(WHOLE.replace(b"1.1", b"1.0"), False, id="HTTP/1.0"),
        pytest.param(WHOLE + b"garbage", False, id="garbage behind"),
        pytest.param(WHOLE + b"HTTP/1.1 102 P\r\n\r\n", False, id="an interim head behind"),
        pytest.param(WHOLE + b"HTTP/1.1 50", False, id="half a head behind"),
        pytest.param(
            WHOLE + b"HTTP/1.1 500 No\r\ncontent-length: 3\r\nx: 2\r\n\r\nbad", False,
            id="a second reply behind",
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\nok", False, id="up to the end of the connection"),
    ],
)  # fmt: skip
async def test_a_reply_is_the_same_however_its_bytes_are_cut(data: bytes, kept: bool) -> None:
    for cuts in ([], list(range(1, len(data))), *([at] for at in range(1, len(data)))):
        exchange = Exchange()
        wire, asked = await _asked(exchange)
        read = asyncio.create_task(_read_after(asked, exchange))
        for start, end in itertools.pairwise((0, *cuts, len(data))):
            if not wire.aborted:
                exchange.data_received(data[start:end])
            await asyncio.sleep(0)
        if not kept:
            exchange.eof_received()
            exchange.connection_lost(None)
        status, body = await read
        names = {name for name in exchange.headers if name not in (b"server", b"x")}
        assert (status, exchange.status, body) == (200, 200, b"ok"), cuts
        assert exchange.headers.keys() == names, cuts
        assert exchange.reusable is kept, cuts


async def _read_after(asked: asyncio.Task[None], exchange: Exchange) -> tuple[int, bytes]:
    await asked
    return exchange.status, await exchange.read(3600.0)


@pytest.mark.parametrize(
    ("first", "again"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nx: ", b"x" * 1000, id="a head"),
        pytest.param(b"", b"HTTP/1.1 102 P\r\n\r\n" * 50, id="interim heads"),
        pytest.param(CHUNKED + b"2\r\nok\r\n0\r\n", b"x: y\r\n" * 99, id="trailers"),
        pytest.param(CHUNKED + b"2\r\nok\r\n0\r\nx: ", b"x" * 1000, id="a trailer"),
        pytest.param(CHUNKED + b"2;", b"x" * 1000, id="a chunk's head"),
    ],
)
async def test_what_is_no_body_is_bounded(first: bytes, again: bytes) -> None:
    exchange = Exchange()
    wire, asked = await _asked(exchange)
    read = asyncio.create_task(_read_after(asked, exchange))
    exchange.data_received(first)
    for _ in range(MAX_HEAD // len(again) + 1):
        await asyncio.sleep(0)
        exchange.data_received(again)
    with pytest.raises(UpstreamError, match="larger than"):
        await read
    assert wire.aborted


async def test_a_connection_is_not_kept_while_its_request_has_not_gone() -> None:
    exchange = Exchange()
    wire, asked = await _asked(exchange)
    wire.unsent = 1
    exchange.data_received(WHOLE)
    await asked
    assert (await exchange.read(3600.0), exchange.reusable) == (b"ok", False)
