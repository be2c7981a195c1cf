"""What reports of prefix caches cost: seconds until a gateway that starts has its index, and time.

Real sockets, real streams, one process for the gateway and all prefills, so that a gateway alone
is faster.
"""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from collections.abc import Callable
from statistics import median

from benchmarks.harness import Row
from tests.support.gateway_rig import SLO, PushSource, eventually

from pdserve.engines.cached_digests import CachedDigests
from pdserve.engines.credentials import Credential
from pdserve.engines.prefix_feed import PrefixFeed
from pdserve.forwarding.prefix.index import CAPACITY, PrefixIndex
from pdserve.gateway.app import GatewayOptions, GatewayServer
from pdserve.http1.limits import ClientLimits
from pdserve.http1.receive import HttpRequest
from pdserve.http1.reply import Reply
from pdserve.http1.server import HttpServer
from pdserve.wire.prefixes import PromptBlocks, blocks_header, feed_lines, parse_line
from pdserve.wire.routes import RouteGroup, RouteInstance, RouteScenario, RouteTable

Timed = Callable[[Callable[[], object]], list[float]]
BLOCKS = 64
"""Of one prompt: 32 KiB of text."""


class _Prefill:
    """Reports a cache and does nothing else."""

    def __init__(self, digests: int, rng: random.Random) -> None:
        cached: CachedDigests[int] = CachedDigests()
        for _ in range(0, digests, BLOCKS):
            count = min(BLOCKS, digests - len(cached))
            chain = array("Q", [rng.getrandbits(64) for _ in range(count)])
            cached.computed(PromptBlocks(chain, 1 / count), chain, 16 * count, 16, set(chain))
        self._feed = PrefixFeed(cached)
        self._server = HttpServer(self._handle, ClientLimits(), self._bug)

    def _handle(self, request: HttpRequest, reply: Reply) -> None:
        self._feed.subscribe(request, reply)

    def _bug(self, error: Exception) -> None:
        raise error

    async def start(self) -> str:
        return f"http://127.0.0.1:{await self._server.start('127.0.0.1', 0)}"

    async def stop(self) -> None:
        self._feed.close()
        await self._server.stop(1)


async def _rebuild(prefills: int, digests: int, rng: random.Random) -> float:
    """Seconds from a gateway's first route table until its index has all that prefills report."""
    started = [_Prefill(digests // prefills, rng) for _ in range(prefills)]
    made = [
        RouteInstance(f"p{n}", "prefill", await prefill.start(), 1)
        for n, prefill in enumerate(started)
    ]
    group = RouteGroup(0, "r", (*made, RouteInstance("d", "decode", "http://127.0.0.1:9", 1)))
    one = RouteScenario("chat", SLO, (group,), prefix_affinity=True)
    source = PushSource()
    gateway = GatewayServer(source, GatewayOptions(credential=Credential("bench")))
    await gateway.start("127.0.0.1", 0)
    try:
        begin = time.perf_counter()
        await source.push(RouteTable("shop", 1, "tiny", "Reference", (one,)))
        (scheduler,) = gateway.service.schedulers
        affinity, all_of_them = scheduler.dispatcher.affinity, digests // prefills * prefills
        await eventually(
            lambda: affinity is not None and affinity.index.size == all_of_them,
            "the index has what prefills report",
        )
        return time.perf_counter() - begin
    finally:
        await gateway.stop()
        for prefill in started:
            await prefill.stop()


def rebuilt(repetitions: int, say: Callable[[str], None]) -> list[Row]:
    """Seconds to rebuild an index of several sizes after a start, beside what is promised."""
    rows = []
    rng = random.Random(1)
    for prefills, digests in ((6, 6000), (6, CAPACITY), (64, CAPACITY)):
        taken = [asyncio.run(_rebuild(prefills, digests, rng)) for _ in range(repetitions)]
        value, worst = median(taken), max(taken)
        say(f"{digests} digests of {prefills} prefills: index rebuilt in {value:.3f} s, "
            f"{worst:.3f} s at most")  # fmt: skip
        rows.append(
            Row(f"index rebuilt after a start: {digests} digests, {prefills} prefills", value, "s",
                "promised", 2.0, 1.0, "lower", len(taken), worst - min(taken))
        )  # fmt: skip
    return rows


def times(timed: Timed, row: Callable[[str, list[float], str, float], Row]) -> list[Row]:
    """Processor time of one finished prefill of 64 blocks, at each end of a report."""
    rng = random.Random(2)
    chain = array("Q", [rng.getrandbits(64) for _ in range(BLOCKS)])
    named = PromptBlocks(chain, 1 / BLOCKS)
    cached: CachedDigests[int] = CachedDigests()
    held = set(chain)
    index: PrefixIndex[str] = PrefixIndex()
    index.follow([f"p{n}" for n in range(64)])
    index.report("p1")
    (line,) = feed_lines(chain)

    def report() -> object:
        cached.computed(named, chain, 16 * BLOCKS, 16, held)
        news = cached.take_news()
        return list(feed_lines(news.held, news.gone))

    def read() -> object:
        found = parse_line(line)
        index.removed("p1", found.gone)
        index.reported("p1", found.held)
        return index

    return [
        row("a leg names its 64 blocks", timed(lambda: blocks_header(named)), "us", 25.0),
        row("a prefill's engine reports 64 blocks", timed(report), "us", 250.0),
        row("a gateway reads a report of 64 blocks", timed(read), "us", 100.0),
    ]
