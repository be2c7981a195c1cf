"""A kept connection lost under the next request: sent again only if nothing can run twice."""

from __future__ import annotations

import asyncio

import pytest

from pdserve.http1 import pool as pools
from pdserve.http1.listener import UpstreamError
from pdserve.http1.pool import Pool

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Server:
    """Answers the first request of each connection, and the second by `says` before it goes."""

    def __init__(self, says: bytes, after: float) -> None:
        self.got = 0
        self._says, self._after = says, after

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for answer in (ANSWER, None):
                await reader.readuntil(b"\r\n\r\n")
                self.got += 1
                if answer is None:
                    await asyncio.sleep(self._after)
                writer.write(self._says if answer is None else answer)
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass  # the pool closed it
        finally:
            writer.close()


@pytest.mark.parametrize(
    ("says", "after", "again"),
    [
        pytest.param(b"", 0.0, True, id="closed at once"),
        pytest.param(b"", 0.3, False, id="closed later: it had the request"),
        pytest.param(b"HTTP/1.1 102 Processing\r\n\r\n", 0.0, False, id="had begun"),
        pytest.param(b"HTTP/1.1 20", 0.0, False, id="had begun to answer"),
    ],
)
async def test_a_request_that_was_begun_is_not_sent_again(
    monkeypatch: pytest.MonkeyPatch, says: bytes, after: float, again: bool
) -> None:
    monkeypatch.setattr(pools, "IDLE_CLOSED", 0.0)
    monkeypatch.setattr(pools, "CLOSED_BEFORE", 0.2 if after else 60.0)
    stub, pool = Server(says, after), Pool(connect_timeout=60.0)
    server = await asyncio.start_server(stub.serve, "127.0.0.1", 0)
    endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def ask() -> bytes:
        exchange = await pool.post(endpoint, "/x", b"", (), 60.0)
        try:
            return await exchange.read(60.0)
        finally:
            pool.done(endpoint, exchange)

    async with server:
        assert await ask() == b"ok"
        if again:
            assert await ask() == b"ok"
        else:
            with pytest.raises(UpstreamError, match="connection lost"):
                await ask()
        assert stub.got == 2 + again
        pool.close()
