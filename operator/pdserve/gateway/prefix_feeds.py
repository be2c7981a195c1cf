"""Follows what prefills report of their prefix caches, into the scenarios' prefix indexes.

One long reply of each prefill brings a snapshot and then what changes (`wire.prefixes`), so that
this gateway also has prompts that others sent, or that it sent before it was started anew. A
prefill that offers no such reply, or whose reply makes no sense, has an estimate in the index
instead, and is asked again later. What one prefill may cost is bounded: length of a line, one line
in a turn of the loop, bytes in a second; the index bounds its blocks.

Neighbours: `app` has routes followed; `forwarding.prefix.index` keeps what is reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable

from pdserve.engines.credentials import Credential, authorization
from pdserve.engines.flow import LegRequest
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.prefix.affinity import Affinity
from pdserve.forwarding.request.scheduler import ScenarioScheduler
from pdserve.gateway.timed_scheduler import TimedScheduler
from pdserve.http1.client import Exchange
from pdserve.http1.listener import UpstreamError
from pdserve.http1.pool import Pool
from pdserve.wire.bounds import WireError
from pdserve.wire.prefixes import (
    ALIVE_SECONDS,
    MAX_DIGESTS,
    MAX_LINE,
    PATH_PREFIXES,
    PromptBlocks,
    blocks_header,
    parse_line,
    wanted,
)

logger = logging.getLogger(__name__)
PATIENCE = 5.0
SILENCE = 4 * ALIVE_SECONDS
"""Seconds without a byte after which a reply is taken for dead."""
RETRY_SECONDS = (0.25, 15.0)
"""After a reply that ended: doubled each time, up to the second."""
ABSENT_SECONDS = 60.0
"""An engine without such a reply is asked again after so long: it may be a newer one by then."""
LASTING = 30.0
"""Seconds after which a reply that ends was a good one."""
BURST = 512 << 10
"""Bytes of one prefill that are read at once: a snapshot has less."""
BYTES_PER_SECOND = 128 << 10
"""And then: some 12,000 digests."""
LEAST_LINE = 256
"""Bytes that a line counts for at least: reading a short one costs time too."""

_Key = tuple[Affinity, Instance]


class PrefixFeeds:
    """The prefills whose reports this process reads."""

    def __init__(self, pool: Pool, credential: Credential) -> None:
        """`credential`: what engines know this gateway by."""
        self._pool, self._credential = pool, credential
        self._tasks: dict[_Key, asyncio.Task[None]] = {}

    def follow(self, schedulers: Iterable[TimedScheduler]) -> None:
        """Read the reports of these scenarios' prefills, where their prefixes count."""
        wanted_now: dict[_Key, TimedScheduler] = {}
        for scheduler in schedulers:
            affinity = scheduler.dispatcher.affinity
            if affinity is not None and scheduler.wants_blocks:
                for group in scheduler.view.groups:
                    wanted_now |= {(affinity, p): scheduler for p in group.prefills}
        for key in [key for key in self._tasks if key not in wanted_now]:
            self._tasks.pop(key).cancel()
        loop = asyncio.get_running_loop()
        for key, scheduler in wanted_now.items():
            if key not in self._tasks:
                self._tasks[key] = loop.create_task(self._follow(*key, scheduler))

    async def close(self) -> None:
        """Read no more."""
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(
        self, affinity: Affinity, prefill: Instance, scheduler: TimedScheduler
    ) -> None:
        """Read one prefill's reports until cancelled."""
        pause, longest = RETRY_SECONDS
        while True:
            begin = time.perf_counter()
            absent = False
            try:
                absent = not await self._read(affinity, prefill)
            except UpstreamError:
                pass  # the route table says whether it is still there
            except WireError as error:
                scheduler.metrics.feed_broken()
                logger.warning("prefill %s: its report of cached blocks: %s", prefill.id, error)
            finally:
                affinity.index.silent(prefill)
            if absent:
                pause = ABSENT_SECONDS
            elif time.perf_counter() - begin > LASTING:
                pause = RETRY_SECONDS[0]
            # Gateways that lost one prefill together do not come back together.
            await asyncio.sleep(pause * (0.5 + scheduler.random()))
            pause = min(longest, 2 * pause)

    async def _read(self, affinity: Affinity, prefill: Instance) -> bool:
        """Read one reply to its end; False: the engine does not report.

        Raises:
            UpstreamError: the prefill cannot be reached or is lost.
            WireError: the reply makes no sense.
        """
        endpoint = prefill.route.endpoint
        body = wanted(min(MAX_DIGESTS, affinity.index.share))
        headers = (authorization(self._credential),)
        exchange = await self._pool.post(endpoint, PATH_PREFIXES, body, headers, PATIENCE)
        try:
            if exchange.status != 200:
                return False
            reader = _Reader(affinity, prefill, exchange)
            try:
                with contextlib.suppress(UpstreamError):
                    await exchange.relay(reader.take, SILENCE)
            finally:
                reader.close()
            reader.check()
            return True
        finally:
            self._pool.done(endpoint, exchange)


class _Reader:
    """The reply of one prefill, line by line."""

    def __init__(self, affinity: Affinity, prefill: Instance, exchange: Exchange) -> None:
        self._index, self._prefill, self._exchange = affinity.index, prefill, exchange
        self._loop = asyncio.get_running_loop()
        self._rest = bytearray()
        self._later: asyncio.TimerHandle | None = None
        self._error: WireError | None = None
        self._begin = self._paid = time.perf_counter()
        self._budget = float(BURST)
        self._missing = 0
        """Digests of the snapshot that have not come."""
        self._rebuilt = False

    def take(self, data: bytes) -> None:
        """Take a piece of the reply; one that makes no sense ends it."""
        self._rest += data
        if self._later is None:
            self._work()

    def close(self) -> None:
        """Take nothing more. It raises nothing: a cancellation may be on its way."""
        if self._later is not None:
            self._later.cancel()

    def check(self) -> None:
        """Say whether the reply was one.

        Raises:
            WireError: it made no sense.
        """
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        """One line, then others have their turn; no more bytes than what is allowed by now."""
        self._later = None
        end = self._rest.find(b"\n")
        try:
            if end < 0 and len(self._rest) > MAX_LINE:
                raise WireError(f"a line is longer than {MAX_LINE} bytes")
            if end >= 0:
                self._line(bytes(self._rest[:end]))
                del self._rest[: end + 1]
        except WireError as error:
            self._error = error
            self._exchange.abort()
            return
        wait = self._spend(max(end + 1, LEAST_LINE) if end >= 0 else 0)
        if wait > 0 or b"\n" in self._rest:
            self._exchange.pause()
            self._later = self._loop.call_later(wait, self._work)
        else:
            self._exchange.resume_if_paused()

    def _line(self, line: bytes) -> None:
        index, prefill = self._index, self._prefill
        held, gone, snapshot = parse_line(line)
        if snapshot is not None:
            index.report(prefill)
            self._missing = snapshot
            self._begin = time.perf_counter()
        elif not index.reports(prefill):
            raise WireError("it does not begin with a snapshot")
        index.removed(prefill, gone)
        index.reported(prefill, held)
        if snapshot is not None or self._missing > 0:
            self._missing -= len(held)
            if self._missing <= 0 and not self._rebuilt:
                self._rebuilt = True  # a line in the log for each reply, not for each snapshot
                seconds = time.perf_counter() - self._begin
                logger.info(
                    "prefill %s: index rebuilt from its report in %.3f s", prefill.id, seconds
                )

    def _spend(self, size: int) -> float:
        """Seconds until more may be read, once `size` bytes were."""
        now = time.perf_counter()
        self._budget = min(BURST, self._budget + BYTES_PER_SECOND * (now - self._paid)) - size
        self._paid = now
        return max(0.0, -self._budget / BYTES_PER_SECOND)


def naming_blocks(
    request: LegRequest, scheduler: ScenarioScheduler, prefill: Instance, blocks: PromptBlocks
) -> LegRequest:
    """A prefill leg that names its prompt's blocks, where the prefill reports which it has."""
    affinity = scheduler.dispatcher.affinity
    if affinity is None or not blocks.digests or not affinity.index.reports(prefill):
        return request
    return LegRequest(request.path, request.body, (*request.headers, blocks_header(blocks)))
