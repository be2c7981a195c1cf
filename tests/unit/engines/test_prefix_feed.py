"""The stream of what a prefix cache has: snapshot, changes, slow readers; over real sockets."""

from __future__ import annotations

import asyncio
import random
import socket
from array import array
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from pdserve.engines import prefix_feed
from pdserve.engines.cached_digests import CachedDigests
from pdserve.engines.prefix_feed import PrefixFeed
from pdserve.http1.limits import ClientLimits
from pdserve.http1.receive import HttpRequest
from pdserve.http1.reply import Reply
from pdserve.http1.server import HttpServer
from pdserve.wire.prefixes import PromptBlocks, parse_line, wanted


class Follower:
    """A gateway's end: what it has by the lines that came."""

    def __init__(self, port: int, most: int, buffer: int = 0) -> None:
        self._port, self._most, self._buffer = port, most, buffer
        self.held: dict[int, None] = {}
        self.snapshots = 0
        self.alive = 0

    async def ask(self) -> int:
        """Status of the reply."""
        raw = socket.socket()
        if self._buffer:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer)
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", self._port))
        self._reader, self._writer = await asyncio.open_connection(sock=raw, limit=1 << 16)
        body = wanted(self._most)
        self._writer.write(b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        head = await self._reader.readuntil(b"\r\n\r\n")
        return int(head.split(b" ")[1])

    async def line(self) -> None:
        """Take the lines of one chunk of the reply."""
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        lines = (await self._reader.readexactly(size + 2))[:-2]
        if not size:
            raise EOFError
        for line in lines.splitlines():
            held, gone, snapshot = parse_line(line)
            self.alive += line == b"{}"
            if snapshot is not None:
                self.held.clear()
                self.snapshots += 1
            for digest in gone:
                self.held.pop(digest, None)
            for digest in held:
                self.held.pop(digest, None)
                self.held[digest] = None

    async def until(self, want: list[int]) -> None:
        """Read until it has these, in this order."""
        async with asyncio.timeout(60):
            while list(self.held) != want:
                await self.line()

    def leave(self) -> None:
        self._writer.close()


class World:
    def __init__(self) -> None:
        self.cached: CachedDigests[int] = CachedDigests(4000)
        self.feed = PrefixFeed(self.cached)
        self.server = HttpServer(self._handle, ClientLimits(), self._bug)
        self.port = 0
        self._rng = random.Random(1)

    def _handle(self, request: HttpRequest, reply: Reply) -> None:
        self.feed.subscribe(request, reply)

    def _bug(self, error: Exception) -> None:
        raise error

    def compute(self, count: int) -> None:
        """A prompt of so many blocks, of one engine block each."""
        chain = [self._rng.getrandbits(64) for _ in range(count)]
        named = PromptBlocks(array("Q", chain), 1 / count)
        self.cached.computed(named, chain, 16 * count, 16, set(chain))

    @property
    def now(self) -> list[int]:
        return self.cached.newest(1 << 20)

    async def follower(self, most: int = 1 << 16, buffer: int = 0) -> Follower:
        follower = Follower(self.port, most, buffer)
        assert await follower.ask() == 200
        return follower


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    made.port = await made.server.start("127.0.0.1", 0)
    yield made
    made.feed.close()
    await made.server.stop(1)


async def test_a_follower_has_what_is_cached_and_then_what_changes(world: World) -> None:
    world.compute(3000)
    early, few = await world.follower(), await world.follower(most=5)
    await early.until(world.now)
    await few.until(world.now[-5:])
    for _ in range(20):
        world.compute(7)
    for digest in world.now[:100]:
        world.cached.removed(digest)
    late = await world.follower()
    await early.until(world.now)
    await late.until(world.now)
    world.cached.cleared()
    world.compute(2)
    for follower in (early, few, late):
        await follower.until(world.now)
        assert follower.snapshots == 1


@pytest.mark.parametrize(("kept", "again"), [(1 << 30, False), (1000, True)])
async def test_a_slow_follower_gets_what_it_missed_or_a_snapshot(
    world: World, monkeypatch: pytest.MonkeyPatch, kept: int, again: bool
) -> None:
    """More is sent than sockets hold; one that reads at once has no part in it."""
    monkeypatch.setattr(prefix_feed, "MOST_MISSED", kept)
    slow, fast = await world.follower(buffer=4096), await world.follower()
    for _ in range(150):
        world.compute(2000)
        world.cached.removed(world.now[0])
        await fast.until(world.now)
    await slow.until(world.now)
    assert fast.snapshots == 1
    assert (slow.snapshots > 1) == again


async def test_a_quiet_stream_says_that_it_is_alive(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_feed, "ALIVE_SECONDS", 0.01)
    quick = PrefixFeed(world.cached)
    world.feed.close()
    world.feed = quick
    follower = await world.follower()
    async with asyncio.timeout(60):
        while follower.alive < 3:
            await follower.line()


async def test_followers_are_bounded_and_those_that_left_count_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_feed, "MAX_SUBSCRIBERS", 3)
    followers = [await world.follower() for _ in range(3)]
    assert await Follower(world.port, 1).ask() == 503
    followers[0].leave()
    async with asyncio.timeout(60):
        while await Follower(world.port, 1).ask() != 200:
            pass
    world.feed.close()
    with pytest.raises(EOFError):
        async with asyncio.timeout(60):
            while True:
                await followers[1].line()
    assert await Follower(world.port, 1).ask() == 503


async def test_a_body_that_is_none_is_refused(world: World) -> None:
    assert await Follower(world.port, 0).ask() == 400
