"""The network between a client and the in-memory API model: latency, losses, crashes.

All chance comes from one seed per client and time is the event loop's, so a schedule replays
exactly. The faults are those of real networks: a request is refused before it was done; an answer
is lost after it was done; a watch lags behind other watches, breaks, expires, or repeats itself.
The changes of one object keep their order (etcd's); those of different objects may be swapped,
because a controller sees them through different watches.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING

from pdserve.dst.api_select import Selection
from pdserve.kube.errors import UNREACHABLE, KubeError
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import Object, ObjectKey, key_of

if TYPE_CHECKING:
    from pdserve.dst.api_kinds import Change, Store
    from pdserve.dst.api_server import FakeApi

OnWrite = Callable[[KubeRequest, "Object | None", Object], None]

BOOKMARK_SECONDS = 60.0
CLOCK_STEP = 1e-6
"""A loop fires timers that are due within its clock's resolution: "now" may be this much early."""


class SimulatedCrash(BaseException):
    """The process was killed here. After it, nothing of this client does anything any more."""


@dataclass(slots=True)
class Faults:
    """What goes wrong for one client. Probabilities in [0, 1]; times in seconds.

    `crash_at=n` kills the process around its n-th write (1-based): before it reaches the server,
    or after it was done but unanswered (`crash_after_effect`).
    """

    seed: int = 0
    latency: tuple[float, float] = (0.0, 0.0)
    refuse: float = 0.0
    """A write or read answered by 500, 503, 429 or nothing, and not done."""
    lose_answer: float = 0.0
    """A write done, but its answer lost."""
    watch_delay: tuple[float, float] = (0.0, 0.0)
    watch_break: float = 0.0
    """Per event: the connection breaks before it."""
    watch_repeat: float = 0.0
    """Per event: it comes twice."""
    watch_swap: float = 0.0
    """Per event: it changes places with the next one, if that is of another object."""
    expire: float = 0.0
    """Per break: the history is gone too (410; deletions meanwhile are only seen by a diff)."""
    crash_at: int | None = None
    crash_after_effect: bool = False
    rng: random.Random = field(init=False)
    writes: int = field(init=False, default=0)
    crashed: bool = field(init=False, default=False)
    down: bool = field(init=False, default=False)
    """Set by a test: the API server cannot be reached; open watches break."""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def happens(self, probability: float) -> bool:
        """Draw whether a fault of this probability (0 to 1) happens.

        Nothing is drawn for 0, so that switching a fault off changes nothing else.
        """
        return probability > 0 and self.rng.random() < probability

    def between(self, span: tuple[float, float]) -> float:
        """A random time in seconds within the span (least, most)."""
        return self.rng.uniform(*span) if span[1] > 0 else 0.0


class FakeTransport:
    """`client.KubeTransport` into a `FakeApi`."""

    def __init__(self, api: FakeApi, faults: Faults, on_write: OnWrite | None = None) -> None:
        """`on_write` is called with each write that took effect, answered or not."""
        self._api = api
        self.faults = faults
        self._on_write = on_write

    async def send(self, request: KubeRequest) -> Object:
        """Answer, refuse, lose or crash."""
        faults = self.faults
        await asyncio.sleep(faults.between(faults.latency))
        self._check_alive()
        if faults.down:
            raise _lost("connection refused")
        if faults.happens(faults.refuse):
            raise self._refusal()
        write = request.verb not in ("get", "list")
        if write:
            faults.writes += 1
            if faults.writes == faults.crash_at and not faults.crash_after_effect:
                self._crash()
        answer = self._handle(request, write=write)
        if write and faults.writes == faults.crash_at:
            self._crash()
        if write and faults.happens(faults.lose_answer):
            raise _lost("connection reset after the request was sent")
        await asyncio.sleep(faults.between(faults.latency))
        self._check_alive()
        return answer

    def _handle(self, request: KubeRequest, *, write: bool) -> Object:
        if self._on_write is None or not write or "dryRun" in request.query:
            return self._api.handle(request)
        name = request.name or (request.body or {}).get("metadata", {}).get("name", "")
        key = ObjectKey(request.namespace or "", name)
        before = self._api.store(request.resource).objects.get(key)
        answer = self._api.handle(request)
        self._on_write(request, before, answer)
        return answer

    async def stream(self, request: KubeRequest) -> AsyncIterator[Object]:
        """A watch, as the client's faults let it through.

        Raises:
            KubeError: 410 for a version that the history no longer has; 0 while the server is away.
        """
        await asyncio.sleep(self.faults.between(self.faults.latency))
        self._check_alive()
        store = self._api.store(request.resource)
        version = int(request.query["resourceVersion"])
        if self.faults.down:
            raise _lost("connection refused")
        if version < store.compacted:
            raise KubeError(410, "Expired", f"too old resource version: {version}")
        until = asyncio.get_running_loop().time() + float(request.query["timeoutSeconds"])
        watch = _Watch(self, store, Selection.of(request), version, until)
        async for document in watch.run():
            yield document

    async def close(self) -> None:
        """Nothing is held."""

    def break_if_unlucky(self, store: Store) -> None:
        """Maybe lose the connection, and maybe the history with it."""
        self.check_up()
        if self.faults.happens(self.faults.watch_break):
            if self.faults.happens(self.faults.expire):
                self._api.expire_history(store.kind.resource)
            raise _lost("watch connection reset")

    def check_up(self) -> None:
        """Check that this client is alive and its server within reach.

        Raises:
            KubeError: one of them is not.
        """
        self._check_alive()
        if self.faults.down:
            raise _lost("connection reset")

    def version(self) -> int:
        """The server's version now."""
        return self._api.version

    def _refusal(self) -> KubeError:
        status, reason = self.faults.rng.choice(
            [(500, "InternalError"), (503, "ServiceUnavailable"), (429, "TooManyRequests"),
             (0, UNREACHABLE)]
        )  # fmt: skip
        return KubeError(status, reason, "injected", retry_after=1.0 if status == 429 else None)

    def _crash(self) -> None:
        self.faults.crashed = True
        raise SimulatedCrash

    def _check_alive(self) -> None:
        if self.faults.crashed:
            raise SimulatedCrash


class _Watch:
    def __init__(
        self,
        transport: FakeTransport,
        store: Store,
        selection: Selection,
        version: int,
        until: float,
    ) -> None:
        self._net = transport
        self._store = store
        self._selection = selection
        self._version = version
        self._until = until

    async def run(self) -> AsyncIterator[Object]:
        loop = asyncio.get_running_loop()
        bookmark_at = loop.time() + BOOKMARK_SECONDS
        while loop.time() < self._until - CLOCK_STEP:
            changed = self._store.changed  # taken before looking: nothing is missed
            batch = self._news()
            async for document in self._deliver(batch):
                yield document
            if batch:
                continue
            wait = min(bookmark_at, self._until) - loop.time()
            try:
                async with asyncio.timeout(max(0.0, wait)):
                    await changed.wait()
                self._net.check_up()
            except TimeoutError:
                # Both at one moment: a bookmark never passes a change that was not delivered.
                if loop.time() >= bookmark_at - CLOCK_STEP and not self._news():
                    bookmark_at = loop.time() + BOOKMARK_SECONDS
                    self._version = max(self._version, self._net.version())
                    yield self._bookmark()

    def _news(self) -> list[Change]:
        if self._version < self._store.last_lost:
            raise KubeError(410, "Expired", f"too old resource version: {self._version}")
        history = self._store.history
        return history[bisect_right(history, self._version, key=_version_of) :]

    async def _deliver(self, batch: list[Change]) -> AsyncIterator[Object]:
        faults = self._net.faults
        for change, may_break in self._swapped(batch):
            await asyncio.sleep(faults.between(faults.watch_delay))
            if may_break:
                self._net.break_if_unlucky(self._store)
            document = self._document(change)
            if document is not None:
                yield document
                if faults.happens(faults.watch_repeat):
                    yield document
        if batch:
            self._version = batch[-1].version

    def _swapped(self, batch: list[Change]) -> list[tuple[Change, bool]]:
        """Some neighbours change places; between those two the connection holds, because a
        client that resumes from the second's version must not miss the first.
        """
        order: list[tuple[Change, bool]] = [(change, True) for change in batch]
        index = 0
        while index + 1 < len(order):
            (here, _), (after, _) = order[index], order[index + 1]
            different = key_of(here.object) != key_of(after.object)
            if different and self._net.faults.happens(self._net.faults.watch_swap):
                order[index : index + 2] = [(after, True), (here, False)]
                index += 1
            index += 1
        return order

    def _document(self, change: Change) -> Object | None:
        """As the selection sees the change: entering is ADDED, leaving is DELETED.

        The object is the stored one: nothing changes an object that a watch delivered.
        """
        was = change.before is not None and self._selection.includes(change.before)
        now = change.type != "DELETED" and self._selection.includes(change.object)
        if not was and not now:
            return None
        kind = "MODIFIED" if was and now else "ADDED" if now else "DELETED"
        return {"type": kind, "object": change.object}

    def _bookmark(self) -> Object:
        resource = self._store.kind.resource
        return {
            "type": "BOOKMARK",
            "object": {
                "apiVersion": resource.api_version,
                "kind": resource.kind,
                "metadata": {"resourceVersion": str(self._version)},
            },
        }


_version_of = attrgetter("version")


def _lost(message: str) -> KubeError:
    return KubeError(0, UNREACHABLE, message)
