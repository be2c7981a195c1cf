"""Reports of prefix caches that make no sense: each costs its own prefill's entries alone."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest
import pytest_asyncio
from tests.support.gateway_rig import PATIENCE, Rig, eventually
from tests.support.reporting_stub import ReportingStub
from tests.support.stub_engine import StubEngine

from pdserve.engines.credentials import Credential
from pdserve.forwarding.prefix.affinity import Affinity
from pdserve.forwarding.prefix.index import CAPACITY
from pdserve.gateway import prefix_feeds
from pdserve.gateway.prefix_feeds import PrefixFeeds
from pdserve.http1.pool import Pool
from pdserve.wire import metrics as names
from pdserve.wire.prefixes import (
    LINE_DIGESTS,
    MAX_DIGESTS,
    MAX_LINE,
    FeedLine,
    feed_lines,
    parse_line,
    snapshot_lines,
)

RNG = random.Random(9)
GOOD = [RNG.getrandbits(64) for _ in range(100)]
NONSENSE = {
    "no JSON": [b"hello\n"],
    "an empty line": [b"\n"],
    "a list": [b"[]\n"],
    "digests before a snapshot": list(feed_lines(GOOD)),
    "no base64": [b'{"snapshot": 1}\n{"held": "%%%%"}\n'],
    "half a digest": [b'{"snapshot": 1}\n{"held": "AAAA"}\n'],
    "a list of digests": [b'{"snapshot": 1}\n{"held": [1, 2]}\n'],
    "a huge snapshot": [b'{"snapshot": 1e999}\n'],
    "too many digests": [b'{"snapshot": %d}\n' % (MAX_DIGESTS + 1)],
    "a line without end": [b'{"snapshot": 1}\n', *[b" " * 4096] * (MAX_LINE // 4096 + 1)],
    "deep": [b'{"snapshot": 1, "x": ' + b"[" * 4000 + b"\n"],
}


@pytest_asyncio.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(prefix_feeds, "RETRY_SECONDS", (0.01, 0.05))
    made = Rig()
    yield made
    await made.close()


async def reporting(rig: Rig, name: str, *report: bytes) -> ReportingStub:
    engine = await rig.engine("prefill", name, ReportingStub)
    assert isinstance(engine, ReportingStub)
    engine.report = report
    return engine


async def start(rig: Rig, other: StubEngine) -> tuple[Affinity, ReportingStub]:
    """A gateway over two prefills, one of them with a good report, which is returned."""
    good = await reporting(rig, "good", *snapshot_lines(GOOD))
    await rig.start()
    await rig.routes([good, other, await rig.engine("decode", "d0")], prefix_affinity=True)
    (scheduler,) = rig.gateway.service.schedulers
    affinity = scheduler.dispatcher.affinity
    assert affinity is not None
    await eventually(lambda: affinity.index.size >= len(GOOD), "the good report is read")
    return affinity, good


@pytest.mark.parametrize("kind", NONSENSE)
async def test_nonsense_is_left_and_counted(rig: Rig, kind: str) -> None:
    other = await reporting(rig, "bad", *NONSENSE[kind])
    affinity, good = await start(rig, other)
    await eventually(lambda: other.asked >= 2, "the prefill is asked again")
    assert await rig.metric(names.GATEWAY_PREFIX_FEEDS_BROKEN) >= 1
    assert affinity.index.size == len(GOOD)
    assert good.asked == 1
    assert (await rig.complete(prompt="x" * 2000)).status == 200


class Stuck:
    """A pool and its one exchange: a reply that makes no sense and has no end."""

    status = 200

    def __init__(self) -> None:
        self.taken = asyncio.Event()

    async def post(self, *_: object) -> Stuck:
        return self

    async def relay(self, take: Callable[[bytes], None], _silence: float) -> None:
        take(b"hello\n")
        self.taken.set()
        await asyncio.Event().wait()

    def abort(self) -> None:
        """Its end is not noticed yet."""

    def done(self, *_: object) -> None:
        """Nothing is kept."""


@pytest.mark.interpreted
async def test_a_report_that_makes_no_sense_does_not_hold_up_the_end_of_a_gateway(rig: Rig) -> None:
    """An error raised while a cancellation is on its way would take its place."""
    await start(rig, await reporting(rig, "other", *snapshot_lines(GOOD)))
    stuck = Stuck()
    feeds = PrefixFeeds(cast(Pool, stuck), Credential("t"))
    feeds.follow(rig.gateway.service.schedulers)
    await asyncio.wait_for(stuck.taken.wait(), PATIENCE)
    await asyncio.wait_for(feeds.close(), PATIENCE)


async def test_an_engine_of_an_older_version_has_an_estimate(rig: Rig) -> None:
    old = await rig.engine("prefill", "old")
    affinity, good = await start(rig, old)
    assert affinity.index.reporting == 1
    assert await rig.metric(names.GATEWAY_PREFIX_FEEDS) == 1
    assert await rig.metric(names.GATEWAY_PREFIX_FEEDS_BROKEN) == 0
    for n in range(8):
        assert (await rig.complete(prompt=f"{n}" * 2000)).status == 200
    # Only one that reports gets the names of blocks.
    named, bare, decode = (
        [b"x-pdserve-prompt-blocks" in headers for headers in engine.headers]
        for engine in (good, old, rig.engines["d0"])
    )
    assert named and all(named)
    assert bare and not any(bare)
    assert decode and not any(decode)


async def test_an_endless_report_costs_a_bounded_part_of_index_and_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_feeds, "BURST", 1 << 20)
    monkeypatch.setattr(prefix_feeds, "BYTES_PER_SECOND", 1)
    rng = random.Random(2)
    endless = [
        line
        for _ in range(400)
        for line in feed_lines([rng.getrandbits(64) for _ in range(LINE_DIGESTS)])
    ]
    other = await reporting(rig, "endless", b'{"snapshot": 0}\n', *endless)
    affinity, _ = await start(rig, other)
    share = affinity.index.share
    await eventually(lambda: affinity.index.size == share + len(GOOD), "its share is full")
    assert share <= CAPACITY // 2
    # 4 MiB were sent; what passes the burst is not read.
    size = affinity.index.size
    await asyncio.sleep(0.2)
    assert affinity.index.size == size
    assert (await rig.complete(prompt="x" * 2000)).status == 200


@pytest.mark.parametrize("line", [b"{}\n", b'{"snapshot": 0}\n', b'{"snapshot":1}\n'])
async def test_a_flood_of_short_lines_costs_no_more_than_long_ones(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(prefix_feeds, "BYTES_PER_SECOND", 1)
    read = 0

    def counted(text: bytes) -> FeedLine:
        nonlocal read
        read += 1
        return parse_line(text)

    monkeypatch.setattr(prefix_feeds, "parse_line", counted)
    other = await reporting(rig, "flood", b'{"snapshot": 0}\n', *[line * 10_000] * 4)
    await start(rig, other)
    most = prefix_feeds.BURST // prefix_feeds.LEAST_LINE
    await eventually(lambda: read >= most, "the burst is read")
    await asyncio.sleep(0.2)
    assert read <= most + 10, "and of 40,000 lines no more"
    rebuilt = [r for r in caplog.records if "rebuilt" in r.getMessage()]
    assert len(rebuilt) <= 2, "one line of the log for each prefill"


async def test_a_prefill_that_leaves_is_read_no_more(rig: Rig) -> None:
    left = await reporting(rig, "left", *snapshot_lines(GOOD[:7]))
    affinity, good = await start(rig, left)
    await eventually(lambda: affinity.index.size == len(GOOD) + 7, "both are read")
    third = await reporting(rig, "third", *snapshot_lines(GOOD[:9]))
    await rig.routes([good, third, rig.engines["d0"]], prefix_affinity=True)
    await eventually(lambda: affinity.index.size == len(GOOD) + 9, "the new one is read")
    await eventually(lambda: not left.followed, "the one that left is read no more")
    assert good.asked == good.followed == 1
    await rig.routes([good, third, rig.engines["d0"]], prefix_affinity=False)
    await eventually(lambda: not good.followed + third.followed, "nor any without affinity")
