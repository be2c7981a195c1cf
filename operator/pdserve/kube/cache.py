"""A local, pruned, always-listed copy of one kind of object; what plans read.

`run` lists, then watches, for ever:

1. **List** page by page, pruning as pages arrive; diff against what is held, so that deletions
   missed while away come out as DELETED.
2. **Watch** from the list's version; bookmarks move the version on. A watch that ends or breaks is
   resumed; one whose version is too old (410) goes back to 1, at once after whatever outage. So
   does one that cannot be read, or that ends at once time and again: lists stand in for it.
3. An unreachable server is waited for with capped, jittered backoff without end; meanwhile reads
   go on from the copy, and `age` says how old it may be.

`observe` writes the answers of our own requests in at once (read your writes). Nothing ever goes
back: an object replaces an older version only, and an answer no newer than what the watch has
already shown is not let in, so that a late answer cannot bring a deleted object back.

An object that the filter or an index function cannot read is reported to `on_skip` and left out:
the filter keeps what it could read last, the index finds it under no value. Others go on.

Handlers receive changes that survive pruning. They run inside the cache, must be quick and
must not raise: they put keys into the work queue, nothing else. Neighbours: `prune`, `workqueue`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypedDict, Unpack

from pdserve.exposition import Registry
from pdserve.frozen import Frozen
from pdserve.kube.cache_metrics import CacheMetrics, CacheState
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import SILENT, UNREADABLE, KubeError
from pdserve.kube.held import Handler, HeldObjects, Index, K, OnSkip, uid_of
from pdserve.kube.prune import Prune, without_managed_fields
from pdserve.kube.resource import Object, ObjectKey, Resource, key_of, version_of
from pdserve.kube.workqueue import Backoff

logger = logging.getLogger(__name__)

RECONNECT = Backoff(base=0.2, cap=15.0, spread=0.3)
EMPTY_WATCHES = 3
"""So many short watches in a row without an event, and there is another list."""
CATCH_UP = 2.0
"""Seconds for which a server that is back tells what happened meanwhile, one event at a time."""
SHORT_WATCH = 1.0
"""Seconds; a watch that the server ends sooner counts as a failed attempt."""


class CacheOptions(TypedDict, total=False):
    """What is followed of a kind, and how; each may be left out."""

    namespace: str | None
    """Only this one; None for the whole cluster."""
    label_selector: str
    """Server-side filter."""
    field_selector: str
    """Server-side filter."""
    page_size: int
    """Objects per page of a list."""
    registry: Registry | None
    """Where the metrics go."""
    on_skip: OnSkip | None
    """Receives objects that cannot be read; default: a line in the log."""
    backoff: Backoff
    """Waits between attempts while the server is away."""
    rng: random.Random | None
    """The jitter's randomness."""


class ViewCache(Generic[K]):
    """See the module. One event loop; reads are synchronous and never block."""

    def __init__(
        self,
        client: KubeClient,
        resource: Resource,
        kept: Callable[[Object], K | None],
        **options: Unpack[CacheOptions],
    ) -> None:
        """Make a cache; nothing happens until `run`.

        Args:
            client: how to reach the API server.
            resource: the kind.
            kept: what to keep of an object; None to keep nothing, as if it did not exist.
            options: see `CacheOptions`.
        """
        self.resource = resource
        self.namespace = options.get("namespace")
        self.synced = asyncio.Event()
        self._client = client
        self._kept = kept
        self._on_skip = options.get("on_skip") or self._log_skip
        self._label_selector = options.get("label_selector", "")
        self._field_selector = options.get("field_selector", "")
        self._page_size = options.get("page_size", 500)
        self._backoff = options.get("backoff", RECONNECT)
        # Spreads reconnects over time; nothing secret depends on it.
        self._rng = options.get("rng") or random.Random()  # noqa: S311 - jitter and schedules, no secrets
        self._progress = 0
        self._failures = 0
        self._expired = False
        self._error = "not started"
        self._heard: float | None = None
        self._back_since = -CATCH_UP
        plural = resource.plural
        registry = options.get("registry") or Registry()
        self._metrics = CacheMetrics(registry, plural, self._figures)
        self._held: HeldObjects[K] = HeldObjects(plural, self._on_skip, self._handler_failed)

    # --- reading ---------------------------------------------------------------------------

    @property
    def changes(self) -> int:
        """Versions taken in and objects dropped so far."""
        return self._held.changes

    def __len__(self) -> int:
        return len(self._held.objects)

    def get(self, name: str, namespace: str = "") -> K | None:
        """The object, or None. Not to be changed by the reader."""
        return self._held.objects.get(ObjectKey(namespace, name))

    def list(self, namespace: str | None = None) -> tuple[K, ...]:
        """All objects (of one namespace), ordered by namespace and name."""
        objects = self._held.objects
        keys = sorted(k for k in objects if namespace is None or k.namespace == namespace)
        return tuple(objects[key] for key in keys)

    def by_index(self, index: str, value: Hashable) -> tuple[K, ...]:
        """Objects for which the index function yielded `value`, ordered by namespace and name."""
        return self._held.by_index(index, value)

    def index_values(self, index: str) -> frozenset[Hashable]:
        """Values with at least one object."""
        return self._held.index_values(index)

    def state(self) -> CacheState:
        """Whether and how well this cache follows the server."""
        now = asyncio.get_running_loop().time()
        age = float("inf") if self._heard is None else now - self._heard
        caught_up = not self._error and now - self._back_since >= CATCH_UP
        return CacheState(self.synced.is_set(), caught_up, age, self._error)

    # --- setting up ------------------------------------------------------------------------

    def on_change(self, handler: Handler[K]) -> None:
        """Call `handler` for every change from now on, the first list's ADDED included."""
        self._held.on_change(handler)

    def add_index(self, name: str, values: Index[K]) -> None:
        """Keep objects findable by what `values(object)` yields, of what is kept of the object."""
        self._held.add_index(name, values)

    # --- writing through -------------------------------------------------------------------

    def observe(self, obj: Object) -> bool:
        """Take in the answer to a write of ours; False if the cache already knows as much.

        Only for objects that this cache's namespace and selectors include.
        """
        read = self._read(obj)
        if read is None or read.version <= self._progress:
            return False
        return self._keep(read)

    def observe_gone(self, obj: Object) -> bool:
        """Take in that exactly this object (same uid) is gone, e.g. a DELETE answered 404.

        Events still on their way do not bring it back.
        """
        key = key_of(obj)
        held = self._held.objects.get(key)
        if held is None or uid_of(held) != obj["metadata"].get("uid"):
            return False
        return self._held.gone(key)

    # --- following the server --------------------------------------------------------------

    async def run(self) -> None:
        """List and watch until cancelled. Ends with nothing but cancellation."""
        loop = asyncio.get_running_loop()
        resume = ""
        while True:
            try:
                version = resume or await self._relist()
                started = loop.time()
                resume = await self._follow(version)
                if loop.time() - started > SHORT_WATCH:
                    continue
                # A server that hangs up at once is not to be hammered. One that does so time and
                # again may have nothing to tell, or no watch to give: lists say which.
                if self._failures >= EMPTY_WATCHES:
                    self._failed(KubeError(0, UNREADABLE, "the server ends each watch at once"))
                    resume = ""
                else:
                    self._failures += 1
            except KubeError as error:
                self._failed(error)
                resume = self._resume_after(error)
            except Exception as error:
                # An answer that is no list or event at all; another list may be one.
                logger.exception("An answer about %s cannot be read", self.resource.plural)
                self._failed(KubeError(0, UNREADABLE, f"{type(error).__name__}: {error!s:.200}"))
                resume = ""
            await asyncio.sleep(self._backoff.delay(self._failures, self._rng))

    def _resume_after(self, error: KubeError) -> str:
        """From which version to watch on; "" to list again."""
        # Silence may mean that the server waits for a version it will never reach (restored etcd);
        # where a watch cannot be read, lists may be.
        again = (SILENT, UNREADABLE)
        if not self.synced.is_set() or error.is_gone or error.reason in again:
            return ""
        if error.is_unreachable or error.status == 429:
            return str(self._progress)
        # 4xx: rights or the kind itself went, a list tells best when they are back. 5xx: usually
        # passing, but one that stays may be about the version.
        return str(self._progress) if error.status >= 500 and self._failures < 3 else ""

    async def _relist(self) -> str:
        listing = await self._client.list(
            self.resource,
            self.namespace,
            page_size=self._page_size,
            transform=self._read,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
        )
        self._heard_now()
        version = int(listing.resource_version)
        rewound = version < self._progress
        if rewound:
            # Only a server restored from a backup counts backwards: nothing held is comparable.
            logger.warning("History of %s was rewound; taking the list as is", self.resource.plural)
            self._held.versions.clear()
        seen = set()
        for number, read in enumerate(listing.items, start=1):
            seen.add(read.key)
            if read.kept is not None or read.key in self._held.objects:
                self._keep(read)
            if number % self._page_size == 0 and not rewound:
                # Ten thousand at once hold the event loop for a tenth of a second. Versions keep
                # what our own writes bring meanwhile; after a rewind they say nothing.
                await asyncio.sleep(0)
        for key in sorted({*self._held.objects, *self._held.gone_keys()} - seen):
            if rewound or self._held.versions.get(key, 0) <= version:
                self._held.drop(key)
        self._progress = version
        self._back_since = -CATCH_UP  # a list says all at once
        self._metrics.relists.labels(self.resource.plural).inc()
        self.synced.set()
        return listing.resource_version

    def _read(self, obj: Object) -> _Read[K] | None:
        """Identity and what to keep of an object; None for one that has no identity."""
        try:
            key, version = key_of(obj), version_of(obj)
        except Exception as error:
            self._on_skip(obj, "filter", error)
            return None
        try:
            return _Read(key, version, self._kept(obj))
        except Exception as error:
            self._on_skip(obj, "filter", error)
            return _Read(key, version, None, readable=False)

    def _keep(self, read: _Read[K]) -> bool:
        """Take in what was read; what was kept of an object before outlives an unreadable one."""
        return read.readable and self._held.store(read.key, read.version, read.kept)

    def _log_skip(self, _obj: object, where: str, error: Exception) -> None:
        logger.warning("Skipped one of %s in %s: %s", self.resource.plural, where, error)

    async def _follow(self, version: str) -> str:
        async for event in self._client.watch(
            self.resource,
            self.namespace,
            resource_version=version,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
        ):
            self._heard_now()
            self._failures = 0
            version = event.object["metadata"]["resourceVersion"]
            if event.type != "BOOKMARK":
                self._metrics.events.labels(self.resource.plural).inc()
                self._apply(event.type, event.object)
            self._progress = max(self._progress, int(version))
        self._heard_now()
        return version

    def _apply(self, event: str, obj: Object) -> None:
        read = self._read(obj)
        if read is None:
            return
        if event != "DELETED":
            self._keep(read)
        elif read.version >= self._held.versions.get(read.key, 0):
            self._held.drop(read.key)

    def _heard_now(self) -> None:
        self._heard = asyncio.get_running_loop().time()
        if self._error:
            self._error, self._back_since = "", self._heard

    def _failed(self, error: KubeError) -> None:
        # The server that says 410 is back; one that keeps saying it is not to be hammered.
        self._failures = 1 if error.is_gone and not self._expired else self._failures + 1
        self._expired = error.is_gone
        if error.is_gone:
            logger.info("Watch of %s expired; listing again", self.resource.plural)
        elif not self._error or not self.synced.is_set():
            logger.warning("Cannot follow %s: %s", self.resource.plural, error)
        self._error = str(error)
        self._metrics.failures.labels(self.resource.plural).inc()

    def _handler_failed(self) -> None:
        self._metrics.handler_errors.labels(self.resource.plural).inc()

    def _figures(self) -> tuple[int, CacheState]:
        return len(self), self.state()


class Cache(ViewCache[Object]):
    """A cache that keeps objects as JSON, pruned."""

    def __init__(
        self,
        client: KubeClient,
        resource: Resource,
        *,
        prune: Prune = without_managed_fields,
        **options: Unpack[CacheOptions],
    ) -> None:
        """As for `ViewCache`; `prune`: what to keep of each object."""

        def kept(obj: Object) -> Object | None:
            found = prune(obj)
            return found if found is None or isinstance(found, Frozen) else Frozen(found)

        super().__init__(client, resource, kept, **options)


@dataclass(frozen=True, slots=True)
class _Read(Generic[K]):
    """One object as the filter read it; `kept` is None for one that is not wanted."""

    key: ObjectKey
    version: int
    kept: K | None
    readable: bool = True
