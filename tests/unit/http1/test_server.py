"""One server for handlers that are coroutines and for handlers that answer by callbacks."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from pdserve.http1.connection import Handler
from pdserve.http1.errors import ApiError
from pdserve.http1.limits import ClientLimits
from pdserve.http1.receive import HttpRequest
from pdserve.http1.reply import Reply
from pdserve.http1.server import HttpServer

Answer = Callable[[HttpRequest, Reply], None]
GET = b"GET /%b HTTP/1.1\r\nhost: x\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
LONG = 60.0


class Served:
    """A running server, and what its handler received."""

    def __init__(self, answer: Answer, kind: str, limits: ClientLimits) -> None:
        self.reports: list[Exception] = []
        self.server = HttpServer(KINDS[kind](answer), limits, self.reports.append)
        self.port = 0

    async def ask(self, *data: bytes) -> bytes:
        """Everything that comes back until the connection ends."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        for piece in data:
            writer.write(piece)
            await writer.drain()
        found = await asyncio.wait_for(reader.read(), LONG)
        writer.close()
        return found


def coroutine(answer: Answer) -> Handler:
    async def handler(request: HttpRequest, reply: Reply) -> None:
        await asyncio.sleep(0)
        answer(request, reply)

    return handler


def at_once(answer: Answer) -> Handler:
    return answer


def by_callback(answer: Answer) -> Handler:
    def handler(request: HttpRequest, reply: Reply) -> None:
        def later() -> None:
            try:
                answer(request, reply)
            except ApiError as error:
                reply.error(error)

        asyncio.get_running_loop().call_soon(later)

    return handler


KINDS: dict[str, Callable[[Answer], Handler]] = {
    "coroutine": coroutine,
    "at once": at_once,
    "by callback": by_callback,
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@asynccontextmanager
async def served(
    answer: Answer, kind: str = "at once", limits: ClientLimits | None = None
) -> AsyncIterator[Served]:
    made = Served(answer, kind, limits or ClientLimits())
    made.port = await made.server.start("127.0.0.1", 0)
    try:
        yield made
    finally:
        await made.server.stop(0)


def echo(request: HttpRequest, reply: Reply) -> None:
    if request.path == "/bad":
        raise ApiError(418, "no coffee", headers=((b"x-why", b"teapot"),))
    reply.send(200, request.path.encode(), "text/plain")


async def until(condition: Callable[[], bool]) -> None:
    """Poll until the condition holds."""
    last = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < last, "not in time"
        await asyncio.sleep(0.01)


@every_kind
async def test_answers_come_in_order_one_after_another(kind: str) -> None:
    async with served(echo, kind) as s:
        paths = [b"%d" % number for number in range(12)]
        found = await s.ask(b"".join(GET % path for path in paths), LAST)
        bodies = [part.rpartition(b"\r\n\r\n")[2] for part in found.split(b"HTTP/1.1 ")[1:]]
        assert bodies == [b"/" + path for path in paths] + [b"/last"]


@every_kind
async def test_an_api_error_is_its_own_answer(kind: str) -> None:
    async with served(echo, kind) as s:
        found = await s.ask(GET % b"bad", LAST)
        assert found.startswith(b"HTTP/1.1 418 ")
        assert b"x-why: teapot\r\n" in found and b"no coffee" in found
        assert found.endswith(b"/last"), "the connection goes on"
        assert s.reports == []


@pytest.mark.parametrize("kind", ["coroutine", "at once"])
async def test_a_bug_costs_its_request_and_frees_what_it_held(kind: str) -> None:
    left: list[str] = []

    def buggy(request: HttpRequest, reply: Reply) -> None:
        if request.path == "/bug":
            reply.on_leave = lambda: left.append("freed")
            raise ZeroDivisionError
        echo(request, reply)

    async with served(buggy, kind) as s:
        found = await s.ask(GET % b"bug", LAST)
        assert found.startswith(b"HTTP/1.1 500 ") and b"internal error" in found
        assert found.endswith(b"/last")
        assert [type(e) for e in s.reports] == [ZeroDivisionError]
        assert left == ["freed"]


@every_kind
async def test_a_head_request_gets_no_body_in_its_answer(kind: str) -> None:
    async with served(echo, kind) as s:
        found = await s.ask(b"HEAD /x HTTP/1.1\r\nhost: x\r\n\r\n", LAST)
        assert found.count(b"HTTP/1.1 200 OK\r\n") == 2
        assert found.partition(b"\r\n\r\n")[2].startswith(b"HTTP/1.1")


async def test_a_holder_learns_once_that_its_client_left() -> None:
    left: list[str] = []
    replies: list[Reply] = []

    def holds(request: HttpRequest, reply: Reply) -> None:
        replies.append(reply)
        reply.on_leave = lambda: left.append(request.path)

    async with served(holds) as s:
        _, writer = await asyncio.open_connection("127.0.0.1", s.port)
        writer.write(GET % b"slow")
        await until(lambda: bool(replies))
        writer.close()
        await until(lambda: bool(left))
        replies[0].send(200, b"too late", "text/plain")
        assert left == ["/slow"]


async def test_a_task_ends_when_its_client_left() -> None:
    ended = asyncio.Event()

    async def sleeps(request: HttpRequest, reply: Reply) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    server = HttpServer(sleeps, ClientLimits(), lambda error: None)
    port = await server.start("127.0.0.1", 0)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET % b"slow")
    await until(lambda: any(c.busy for c in server.connections))
    writer.close()
    await asyncio.wait_for(ended.wait(), LONG)
    await server.stop(0)


@pytest.mark.parametrize("read", [True, False])
async def test_whether_the_last_answer_was_read_is_seen(read: bool) -> None:
    unread: list[str] = []

    def answer(request: HttpRequest, reply: Reply) -> None:
        reply.on_unread = lambda: unread.append(request.path)
        reply.send(200, b"x", "text/plain")

    async with served(answer) as s:
        client = socket.create_connection(("127.0.0.1", s.port))
        client.sendall(GET % b"x")
        await until(lambda: any(not c.busy for c in s.server.connections))
        client.settimeout(LONG)
        if read:
            await asyncio.to_thread(client.recv, 1 << 16)
        else:
            await asyncio.to_thread(client.recv, 1, socket.MSG_PEEK)  # it is there
        client.close()
        await until(lambda: not s.server.connections)
        assert unread == ([] if read else ["/x"])


BOUNDED: dict[str, tuple[ClientLimits, bytes]] = {
    "requests": (ClientLimits(pipelined=3), GET % b"x" * 5),
    "bytes": (
        ClientLimits(waiting=100),
        b"POST /x HTTP/1.1\r\ncontent-length: 60\r\n\r\n" + b"y" * 60,
    ),
}


@pytest.mark.parametrize("case", BOUNDED)
async def test_what_waits_on_a_connection_is_bounded(case: str) -> None:
    limits, data = BOUNDED[case]
    waiting: list[Reply] = []
    async with served(lambda request, reply: waiting.append(reply), limits=limits) as s:
        reader, writer = await asyncio.open_connection("127.0.0.1", s.port)
        writer.write(data * (1 if case == "requests" else 3))
        await until(lambda: bool(waiting))
        while not reader.at_eof():
            if waiting:
                waiting.pop().send(200, b"", "text/plain")
            try:
                found = await asyncio.wait_for(reader.read(1 << 16), 0.2)
            except TimeoutError:
                continue
            if b"too_many_pipelined" in found:
                break
        else:
            pytest.fail("nothing was refused")
        writer.close()


@every_kind
async def test_a_reader_that_takes_nothing_gets_no_further_answers_and_is_cut(kind: str) -> None:
    asked: list[str] = []

    def large(request: HttpRequest, reply: Reply) -> None:
        asked.append(request.path)
        reply.send(200, bytes(32 << 20), "text/plain")

    limits = ClientLimits(write_stall=0.3, sweep=0.05)
    async with served(large, kind, limits) as s:
        client = socket.create_connection(("127.0.0.1", s.port))
        client.sendall(GET % b"x" * 3)
        await until(lambda: bool(asked))
        await until(lambda: not s.server.connections)
        assert asked == ["/x"]
        client.close()


async def test_an_empty_piece_does_not_end_a_stream() -> None:
    def pieces(_: HttpRequest, reply: Reply) -> None:
        reply.start(200, "text/plain", b"")
        for data in (b"a", b"", b"b"):
            reply.write(data)
        reply.end(b"")

    async with served(pieces) as s:
        found = await s.ask(LAST)
    assert found.endswith(b"\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n")


async def test_a_source_that_comes_to_a_stalled_client_is_held_at_once() -> None:
    """A stream that goes on has another source, while the client still takes nothing."""
    calls: list[str] = []
    held: list[Reply] = []

    def large(_: HttpRequest, reply: Reply) -> None:
        held.append(reply)
        reply.on_flow(lambda: calls.append("hold first"), lambda: calls.append("go on first"))
        reply.start(200, "text/plain", bytes(32 << 20))

    async with served(large) as s:
        client = socket.create_connection(("127.0.0.1", s.port))
        client.sendall(GET % b"x")
        await until(lambda: "hold first" in calls)
        held[0].on_flow(lambda: calls.append("hold"), lambda: calls.append("go on"))
        assert calls == ["hold first", "hold"]
        client.close()


@pytest.mark.parametrize("tells", [True, False])
async def test_a_request_that_does_not_arrive_is_ended_with_or_without_a_word(tells: bool) -> None:
    limits = ClientLimits(receive=0.1, sweep=0.05, tells_late=tells)
    async with served(echo, limits=limits) as s:
        try:
            found = await s.ask(b"POST /x HTTP/1.1\r\ncontent-length: 9\r\n\r\nhalf")
        except ConnectionError:
            found = b""
        assert found.startswith(b"HTTP/1.1 408 ") if tells else found == b""


async def test_an_idle_connection_is_closed_after_its_last_answer() -> None:
    limits = ClientLimits(idle=0.1, sweep=0.05)
    async with served(echo, limits=limits) as s:
        try:
            assert (await s.ask(GET % b"x")).endswith(b"/x")
        except ConnectionError:
            pytest.fail("the answer was lost")


@every_kind
async def test_stopping_lets_what_runs_end(kind: str) -> None:
    held: list[Reply] = []
    gate = asyncio.Event()
    if kind == "coroutine":

        async def handler(request: HttpRequest, reply: Reply) -> None:
            held.append(reply)
            await gate.wait()
            reply.send(200, b"whole", "text/plain")

        chosen: Handler = handler
    else:

        def chosen(request: HttpRequest, reply: Reply) -> Awaitable[None] | None:
            held.append(reply)
            return None

    server = HttpServer(chosen, ClientLimits(), lambda error: None)
    port = await server.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET % b"x")
    await until(lambda: bool(held))
    stopped = asyncio.create_task(server.stop(LONG))
    await until(lambda: server.draining)
    gate.set()
    if kind != "coroutine":
        held[0].send(200, b"whole", "text/plain")
    assert (await asyncio.wait_for(reader.read(), LONG)).endswith(b"whole")
    assert await stopped == 0
    writer.close()
