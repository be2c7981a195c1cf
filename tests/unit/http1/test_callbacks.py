"""What a connection does when one of its own callbacks fails."""

from __future__ import annotations

import asyncio

from pdserve.http1.limits import ClientLimits
from pdserve.http1.receive import HttpRequest
from pdserve.http1.reply import Reply
from pdserve.http1.server import HttpServer


def answer(request: HttpRequest, reply: Reply) -> None:
    reply.send(200, b"here", "text/plain")


async def test_a_bug_while_receiving_is_no_fault_of_the_client() -> None:
    """The parser's own error would say that the client's HTTP is malformed."""
    reports: list[Exception] = []
    limits = ClientLimits(body=1 << 20)
    server = HttpServer(answer, limits, reports.append, keeps=lambda path: 1 // 0)
    port = await server.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    found = await asyncio.wait_for(reader.read(), 60.0)
    writer.close()
    await server.stop(0)
    assert found.startswith(b"HTTP/1.1 500 "), found
    assert [type(e) for e in reports] == [ZeroDivisionError]
