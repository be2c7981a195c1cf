"""Streams to gateways which prompt blocks this instance has in its prefix cache.

Every gateway that asks gets a snapshot, then what changes, in one long reply (`wire.prefixes`).
Changes of some milliseconds are sent together. A gateway that reads too slowly gets what it missed
when it goes on, each digest once; one that missed more than there is gets a new snapshot. So a
stream has no gaps, and what waits for a gateway is bounded.

Neighbours: `cached_digests` has the state; the HTTP handlers of the reference engine and of the
engine proxy call `subscribe`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from functools import partial
from typing import Generic, TypeVar

from pdserve.engines.cached_digests import CachedDigests, News
from pdserve.http1.errors import ApiError
from pdserve.http1.receive import HttpRequest
from pdserve.http1.reply import Reply
from pdserve.wire.bounds import WireError
from pdserve.wire.prefixes import (
    ALIVE_SECONDS,
    HEADER_PROMPT_BLOCKS,
    NO_BLOCKS,
    PromptBlocks,
    feed_lines,
    parse_blocks,
    parse_wanted,
    snapshot_lines,
)

K = TypeVar("K", bound=Hashable)
GATHER_SECONDS = 0.01
"""Changes wait so long for others to be sent with."""
MAX_SUBSCRIBERS = 256
MOST_MISSED = 1 << 15
"""Changes that are kept for a gateway that does not read."""
CONTENT_TYPE = "application/jsonl"


class PrefixFeed(Generic[K]):
    """The gateways that follow one instance's cache."""

    def __init__(self, cached: CachedDigests[K]) -> None:
        self.cached = cached
        cached.changed = self._changed
        self._loop = asyncio.get_running_loop()
        self._subscribers: set[_Subscriber] = set()
        self._gather: asyncio.TimerHandle | None = None
        self._alive = self._loop.call_later(ALIVE_SECONDS, self._say_alive)
        self._closed = False

    def subscribe(self, request: HttpRequest, reply: Reply) -> None:
        """Answer a gateway that asks; its reply goes on until it leaves.

        Raises:
            ApiError: 400, the body is wrong; 503, too many gateways ask, or the instance stops.
        """
        try:
            most = parse_wanted(request.body)
        except WireError as error:
            raise ApiError(400, str(error), code="bad_request") from error
        if self._closed or len(self._subscribers) >= MAX_SUBSCRIBERS:
            raise ApiError(503, "no more gateways can follow the cache", code="full")
        self._send()  # what was new until now is part of the snapshot
        subscriber = _Subscriber(reply, self.cached, most)
        self._subscribers.add(subscriber)
        reply.on_leave = lambda: self._subscribers.discard(subscriber)
        subscriber.begin()

    def close(self) -> None:
        """End all streams."""
        self._closed = True
        self._alive.cancel()
        if self._gather is not None:
            self._gather.cancel()
        subscribers, self._subscribers = self._subscribers, set()
        for subscriber in subscribers:
            subscriber.reply.end()

    def _changed(self) -> None:
        if self._gather is None and not self._closed:
            self._gather = self._loop.call_later(GATHER_SECONDS, self._send)

    def _send(self) -> None:
        if self._gather is not None:
            self._gather.cancel()
            self._gather = None
        news = self.cached.take_news()
        if not news.held and not news.gone:
            return
        lines = b"".join(feed_lines(news.held, news.gone))
        for subscriber in self._subscribers:
            subscriber.tell(news, lines)

    def _say_alive(self) -> None:
        for subscriber in self._subscribers:
            subscriber.say_alive()
        self._alive = self._loop.call_later(ALIVE_SECONDS, self._say_alive)


class _Subscriber:
    """One gateway."""

    def __init__(self, reply: Reply, cached: CachedDigests[K], most: int) -> None:
        self.reply = reply
        self._newest: Callable[[], list[int]] = partial(cached.newest, most)
        self._missed: dict[int, bool] | None = None
        """What changed while it did not read; None: it reads."""
        self._lost = False
        """It missed more than is kept for it."""

    def begin(self) -> None:
        self.reply.start(200, CONTENT_TYPE, b"".join(snapshot_lines(self._newest())))
        self.reply.on_flow(self._pause, self._resume)

    def tell(self, news: News, lines: bytes) -> None:
        """Send what is new, `lines`, or keep it until the gateway reads."""
        missed = self._missed
        if missed is None:
            self.reply.write(lines)
            return
        for digests, held in ((news.gone, False), (news.held, True)):
            for digest in digests:
                missed.pop(digest, None)
                missed[digest] = held
        if len(missed) > MOST_MISSED:
            missed.clear()
            self._lost = True

    def say_alive(self) -> None:
        if self._missed is None:
            self.reply.write(b"{}\n")

    def _pause(self) -> None:
        self._missed = {}

    def _resume(self) -> None:
        missed, self._missed = self._missed or {}, None
        if self._lost:
            lines = snapshot_lines(self._newest())
        else:
            held = [digest for digest, is_held in missed.items() if is_held]
            lines = feed_lines(held, [digest for digest, is_held in missed.items() if not is_held])
        self._lost = False
        self.reply.write(b"".join(lines))


def named_blocks(request: HttpRequest) -> PromptBlocks:
    """The blocks that a leg's header names; none where it has no such header, or a malformed one.

    A request is served whatever it says of its blocks.
    """
    try:
        return parse_blocks(request.header(HEADER_PROMPT_BLOCKS) or "")
    except WireError:
        return NO_BLOCKS
