"""A link between two real engines that damages KV on its way, and requests that go over it.

`CorruptingLink` stands at the KV port that a decode's peer table names for a prefill and passes
bytes on. It reads whole answers to pulls, so it can do all that a broken network card, switch or
memory does: flip, zero, lose, repeat and swap bytes, or send an answer of earlier. Shared by the
unit tests and `make bench-kv`.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.support.engine_requests import BODY, PATH
from tests.support.engines import Client, EngineProcess, Group, fresh_host, until

from pdserve.refengine.kv import integrity, protocol
from pdserve.refengine.kv.pool import blocks_for
from pdserve.refengine.kv.protocol import FrameKind
from pdserve.terms.json import JsonObject
from pdserve.wire import calls
from pdserve.wire.peers import PeerTable

OUTCOMES = ("right tokens", "corrupt", "failed")


async def read_frame(reader: asyncio.StreamReader) -> tuple[FrameKind, JsonObject, bytes]:
    """The next frame of a connection, parsed and as it came.

    Raises:
        asyncio.IncompleteReadError: the connection ended.
    """
    head = await reader.readexactly(protocol.HEAD.size)
    raw = head + await reader.readexactly(protocol.HEAD.unpack(head)[3])
    found = protocol.decode(memoryview(raw))
    assert found is not None
    return found[0], found[1], raw


@dataclass
class Answer:
    """The bytes with which a prefill answers a pull: its KV frame, then frames with heads."""

    announced: int
    """Bytes of the KV frame."""
    block: int
    """Bytes of a block."""
    wire: bytearray


@dataclass
class CorruptingLink:
    """Passes bytes between a decode and the prefill at `target`."""

    random: random.Random
    target: tuple[str, int]
    host: str = field(default_factory=fresh_host)
    port: int = 0
    kind: str = ""
    """Class of the next corruption."""
    due: int = 0
    """How many of the next pulls it damages."""
    done: int = 0
    """How many pulls it damaged."""
    former: Answer | None = None
    """The last answer that it passed on undamaged."""
    _server: asyncio.Server | None = None
    _ways: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, self.host, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close all connections."""
        if self._server is not None:
            self._server.close()
        ways = tuple(self._ways)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(*self.target, limit=1 << 24)
        asked: asyncio.Queue[JsonObject] = asyncio.Queue()
        # Either end closes: so does the other.
        ways = [
            asyncio.create_task(self._questions(reader, there[1], asked)),
            asyncio.create_task(self._answers(there[0], writer, asked)),
        ]
        self._ways.update(ways)
        _, running = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in running:
            way.cancel()
        await asyncio.wait(ways)
        self._ways.difference_update(ways)
        for end in (writer, there[1]):
            end.close()

    async def _questions(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        asked: asyncio.Queue[JsonObject],
    ) -> None:
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                kind, body, raw = await read_frame(reader)
                if kind is FrameKind.PULL:
                    asked.put_nowait(body)
                    if self.due and self.kind == "question":
                        self._count()
                        raw = bytes(flip(self, bytearray(raw)))
                writer.write(raw)

    async def _answers(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        asked: asyncio.Queue[JsonObject],
    ) -> None:
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                kind, body, raw = await read_frame(reader)
                question = (
                    {} if kind not in (FrameKind.KV, FrameKind.MISSING) else await asked.get()
                )
                if kind is not FrameKind.KV:
                    writer.write(raw)
                    continue
                blocks = blocks_for(int(body["tokens"]))
                heads = -(-blocks // int(question["each"])) * integrity.HEAD.size
                rest = await reader.readexactly(int(body["bytes"]) + heads)
                answer = Answer(len(raw), int(body["bytes"]) // blocks, bytearray(raw + rest))
                if self.due and self.kind != "question":
                    self._count()
                    writer.write(CLASSES[self.kind](self, answer))
                    await writer.drain()
                    if self.kind == "truncated":
                        return
                    continue
                self.former = answer
                writer.write(answer.wire)
                await writer.drain()

    def _count(self) -> None:
        self.due -= 1
        self.done += 1


def flip(link: CorruptingLink, wire: bytearray, low: int = 0, high: int = 0) -> bytearray:
    """Flip one bit of the bytes from `low` to `high` (0: the end)."""
    place = link.random.randrange(8 * low, 8 * (high or len(wire)))
    wire[place // 8] ^= 1 << place % 8
    return wire


def _announcement(link: CorruptingLink, answer: Answer) -> bytearray:
    return flip(link, answer.wire, 0, answer.announced)


def _bit(link: CorruptingLink, answer: Answer) -> bytearray:
    return flip(link, answer.wire, answer.announced)


def _head(link: CorruptingLink, answer: Answer) -> bytearray:
    return flip(link, answer.wire, answer.announced, answer.announced + integrity.HEAD.size)


def _burst(link: CorruptingLink, answer: Answer) -> bytearray:
    start, size = _piece(link, answer)
    answer.wire[start : start + size] = link.random.randbytes(size)
    return answer.wire


def _zeroed(link: CorruptingLink, answer: Answer) -> bytearray:
    start, size = _piece(link, answer)
    answer.wire[start : start + size] = bytes(size)
    flip(link, answer.wire, start, start + size)  # it may have been zero before
    return answer.wire


def _lost(link: CorruptingLink, answer: Answer) -> bytearray:
    start, size = _piece(link, answer)
    del answer.wire[start : start + size]
    return answer.wire + link.random.randbytes(size)


def _truncated(link: CorruptingLink, answer: Answer) -> bytearray:
    return answer.wire[: link.random.randrange(len(answer.wire))]


def _swapped(link: CorruptingLink, answer: Answer) -> bytearray:
    first = answer.announced + integrity.HEAD.size
    count = (len(answer.wire) - first) // answer.block
    a, b = (first + answer.block * i for i in link.random.sample(range(count), 2))
    one, other = answer.wire[a : a + answer.block], answer.wire[b : b + answer.block]
    answer.wire[a : a + answer.block], answer.wire[b : b + answer.block] = other, one
    return answer.wire


def _stale_block(link: CorruptingLink, answer: Answer) -> bytearray:
    assert link.former is not None
    first = answer.announced + integrity.HEAD.size
    count = (min(len(answer.wire), len(link.former.wire)) - first) // answer.block
    place = first + answer.block * link.random.randrange(count)
    there = link.former.announced - answer.announced + place
    answer.wire[place : place + answer.block] = link.former.wire[there : there + answer.block]
    return answer.wire


def _stale_answer(link: CorruptingLink, answer: Answer) -> bytearray:
    assert link.former is not None
    return link.former.wire


def _stale_frames(link: CorruptingLink, answer: Answer) -> bytearray:
    """The announcement of this KV, and the frames of earlier KV of as many bytes."""
    assert link.former is not None
    return answer.wire[: answer.announced] + link.former.wire[link.former.announced :]


def _piece(link: CorruptingLink, answer: Answer) -> tuple[int, int]:
    size = link.random.randint(1, 4096)
    return link.random.randrange(answer.announced, len(answer.wire) - size), size


CLASSES: dict[str, Callable[[CorruptingLink, Answer], bytearray]] = {
    "announcement": _announcement,
    "bit": _bit,
    "head": _head,
    "burst": _burst,
    "zeroed": _zeroed,
    "lost": _lost,
    "truncated": _truncated,
    "swapped": _swapped,
    "stale block": _stale_block,
    "stale answer": _stale_answer,
    "stale frames": _stale_frames,
}
KINDS = ("question", *CLASSES)


@dataclass
class OverLink(Group):
    """A P/D group of one prefill and one decode, whose KV goes over a link."""

    link: CorruptingLink | None = None

    def table(self, version: int) -> PeerTable:
        """The prefill's KV address is the link's."""
        assert self.link is not None
        table, address = super().table(version), f"{self.link.host}:{self.link.port}"
        members = (
            replace(p, transfer=address) if p.role == "prefill" else p for p in table.instances
        )
        return replace(table, instances=tuple(members))


@contextmanager
def engines(log: Path) -> Iterator[tuple[EngineProcess, EngineProcess, EngineProcess]]:
    """A prefill, a decode and an instance that does both, started."""
    made = (
        EngineProcess("prefill", log=log),
        EngineProcess("decode", ("--transfer-timeout", "2"), log=log),
        EngineProcess("both", log=log),
    )
    try:
        for engine in made:
            engine.start()
        yield made
    finally:
        for engine in made:
            engine.kill()


async def requests_over_link(
    client: Client, seed: int, count: int, log: Path
) -> tuple[Counter[str], Counter[str]]:
    """Send so many requests, each of whose first pulls is damaged, and compare their tokens.

    Returns how the requests ended (`OUTCOMES`, and "wrong tokens"), and how many pulls were damaged
    by class. A request that ended without tokens is sent once more and then has to succeed.

    Raises:
        AssertionError: the second time, it did not.
    """
    choice, outcomes, damaged = random.Random(seed), Counter[str](), Counter[str]()
    # One length, so that KV of one prompt has as many bytes as that of another.
    prompts = [[5 + (7 * i + 31 * n) % 900 for i in range(85)] for n in range(8)]
    with engines(log) as (prefill, decode, both):
        for engine in (prefill, decode, both):
            await until(lambda e=engine: client.up(e), f"{engine.name} listens")  # type: ignore[misc]
        link = CorruptingLink(choice, (prefill.host, 5600))
        await link.start()
        group = OverLink(client, [prefill], [decode], link=link)
        await group.push()
        bodies = [BODY | {"prompt": prompt} for prompt in prompts]
        right = [_text(await client.call("POST", both.url + PATH, body)) for body in bodies]
        assert len(set(right)) > 1
        for body, text in zip(bodies, right, strict=True):
            assert _text(await group.generate(PATH, body)) == text
        for number in range(count):
            which = number % len(bodies)
            link.kind, link.due = KINDS[number % len(KINDS)], choice.choice((1, 1, 2))
            before = link.done
            outcome = await _one(group, bodies[which], right[which])
            outcomes[outcome] += 1
            damaged[link.kind] += link.done - before
            link.due = 0
            if outcome in ("corrupt", "failed"):
                assert await _one(group, bodies[which], right[which]) == "right tokens", seed
        await link.stop()
    return outcomes, damaged


async def _one(group: OverLink, body: dict[str, Any], right: str) -> str:
    """How one request ended; what it held is released, as a gateway does."""
    first = await group.patient(lambda: group.prefill(PATH, body))
    params = first.body[calls.PARAM_KV]
    reply = await group.patient(lambda: group.decode(PATH, body, params))
    if reply.status == 200:
        return "right tokens" if _text(reply) == right else "wrong tokens"
    assert reply.status == 502, reply.body
    release = {"request_id": params["remote_request_id"]}
    await group.client.call("POST", group.prefills[0].url + calls.PATH_RELEASE, release)
    reason = reply.headers[calls.HEADER_REJECT]
    return {calls.REJECT_KV_CORRUPT: "corrupt", calls.REJECT_KV_FAILED: "failed"}[reason]


def _text(reply: Any) -> str:
    assert reply.status == 200, reply.body
    return str(reply.body["choices"][0]["text"])
