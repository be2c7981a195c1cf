"""A process that stood still does not count what it missed as another's fault."""

from __future__ import annotations

import asyncio
import time

import pytest

from pdserve.http1.pool import Pool
from pdserve.http1.stalls import LAST_LOOK, within

STALL = 0.3
LIMIT = 0.1


def _stall_soon() -> None:
    """Block the event loop at its next turn for longer than any limit here."""
    asyncio.get_running_loop().call_soon(time.sleep, STALL)


async def test_an_answer_that_came_while_the_process_stood_still_counts() -> None:
    loop = asyncio.get_running_loop()
    answer = loop.create_future()
    loop.call_later(LIMIT / 2, answer.set_result, "here")
    _stall_soon()
    async with within(LIMIT):
        assert await answer == "here"


async def test_the_time_of_a_block_ends() -> None:
    with pytest.raises(TimeoutError):
        async with within(LIMIT):
            await asyncio.sleep(3600)


async def test_the_end_of_a_block_ends_its_limit() -> None:
    async with within(LIMIT):
        await asyncio.sleep(0)
    await asyncio.sleep(2 * LIMIT)


async def test_the_blocks_own_errors_and_cancellation_pass() -> None:
    with pytest.raises(ValueError, match="mine"):
        async with within(LIMIT):
            raise ValueError("mine")

    async def waits() -> None:
        async with within(3600):
            await asyncio.sleep(3600)

    task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("turn", [0.0, 2 * LAST_LOOK])
async def test_a_connection_made_while_the_gateway_stood_still_is_no_fault(turn: float) -> None:
    """A gateway without CPU for a second ejected all instances that it was connecting to.

    `turn`: seconds for which each turn of the event loop stands still afterwards.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = Pool(connect_timeout=LIMIT)
    async with server:
        asked = asyncio.create_task(pool.post(f"http://127.0.0.1:{port}", "/", b"", (), 60.0))
        await asyncio.sleep(0)
        time.sleep(STALL)  # noqa: ASYNC251 (the process has no CPU)
        while not asked.done():
            await asyncio.sleep(0)
            time.sleep(turn)  # noqa: ASYNC251 (the process has no CPU)
        exchange = await asked
        assert exchange.status == 200
        exchange.abort()
