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

Handlers are told of changes that survive pruning. They run inside the cache, must be quick and
must not raise: they put keys into the work queue, nothing else. Neighbours: `prune`, `workqueue`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Literal

from pdserve.exposition import Registry
from pdserve.frozen import Frozen
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import SILENT, UNREADABLE, KubeError
from pdserve.kube.prune import Prune, without_managed_fields
from pdserve.kube.resource import Object, ObjectKey, Resource, key_of, version_of
from pdserve.kube.workqueue import Backoff

logger = logging.getLogger(__name__)

ChangeType = Literal["ADDED", "MODIFIED", "DELETED"]
Handler = Callable[[ChangeType, Object | None, Object | None], None]
"""`handler(event, old, new)`: old is None for ADDED, new is None for DELETED."""
Index = Callable[[Object], Iterable[Hashable]]
OnSkip = Callable[[Object, str, Exception], None]
"""`on_skip(object, where, error)`: `where` is `filter` or `index`."""

RECONNECT = Backoff(base=0.2, cap=15.0, spread=0.3)
EMPTY_WATCHES = 3
"""So many short watches in a row without an event, and there is another list."""
SHORT_WATCH = 1.0
"""Seconds; a watch that the server ends sooner counts as a failed attempt."""


@dataclass(frozen=True, slots=True)
class CacheState:
    """How far a cache may be trusted."""

    synced: bool
    connected: bool
    """The last request was answered."""
    age: float
    """Seconds since the server was last heard (at most about 60 on a quiet, healthy watch)."""
    error: str
    """Why it is not connected; "" when it is."""


class Cache:
    """See the module. One event loop; reads are synchronous and never block."""

    def __init__(
        self,
        client: KubeClient,
        resource: Resource,
        *,
        namespace: str | None = None,
        prune: Prune = without_managed_fields,
        label_selector: str = "",
        field_selector: str = "",
        page_size: int = 500,
        registry: Registry | None = None,
        on_skip: OnSkip | None = None,
        backoff: Backoff = RECONNECT,
        rng: random.Random | None = None,
    ) -> None:
        """Make a cache; nothing happens until `run`.

        Args:
            client: how to reach the API server.
            resource: the kind.
            namespace: only this one; None for the whole cluster.
            prune: what to keep of each object.
            label_selector: server-side filter.
            field_selector: server-side filter.
            page_size: objects per page of a list.
            registry: where the metrics go.
            on_skip: told of objects that cannot be read; default: a line in the log.
            backoff: waits between attempts while the server is away.
            rng: the jitter's randomness.
        """
        self.resource = resource
        self.namespace = namespace
        self.synced = asyncio.Event()
        self._client = client
        self._prune = prune
        self._on_skip = on_skip or self._log_skip
        self._label_selector = label_selector
        self._field_selector = field_selector
        self._page_size = page_size
        self._backoff = backoff
        # Spreads reconnects over time; nothing secret depends on it.
        self._rng = rng or random.Random()  # noqa: S311 - jitter and schedules, no secrets
        self._objects: dict[ObjectKey, Object] = {}
        self._versions: dict[ObjectKey, int] = {}
        self._progress = 0
        self.changes = 0
        """Versions taken in and objects dropped so far."""
        self._handlers: list[Handler] = []
        self._indexes: dict[str, _IndexStore] = {}
        self._failures = 0
        self._expired = False
        self._error = "not started"
        self._heard: float | None = None
        self._metrics = _CacheMetrics(registry or Registry(), self)

    # --- reading ---------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, name: str, namespace: str = "") -> Object | None:
        """The object, or None. Not to be changed by the reader."""
        return self._objects.get(ObjectKey(namespace, name))

    def list(self, namespace: str | None = None) -> tuple[Object, ...]:
        """All objects (of one namespace), ordered by namespace and name."""
        keys = sorted(k for k in self._objects if namespace is None or k.namespace == namespace)
        return tuple(self._objects[key] for key in keys)

    def by_index(self, index: str, value: Hashable) -> tuple[Object, ...]:
        """Objects for which the index function yielded `value`, ordered by namespace and name."""
        return tuple(self._objects[key] for key in sorted(self._indexes[index].keys(value)))

    def index_values(self, index: str) -> frozenset[Hashable]:
        """Values with at least one object."""
        return self._indexes[index].values()

    def state(self) -> CacheState:
        """Whether and how well this cache follows the server."""
        age = float("inf")
        if self._heard is not None:
            age = asyncio.get_running_loop().time() - self._heard
        return CacheState(self.synced.is_set(), not self._error, age, self._error)

    # --- setting up ------------------------------------------------------------------------

    def on_change(self, handler: Handler) -> None:
        """Call `handler` for every change from now on, the first list's ADDED included."""
        self._handlers.append(handler)

    def add_index(self, name: str, values: Index) -> None:
        """Keep objects findable by what `values(object)` yields (of the pruned object)."""
        store = self._indexes[name] = _IndexStore(values, self._on_skip)
        for key, obj in self._objects.items():
            store.replace(key, None, obj)

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

        An event still on its way may show it once more before its end.
        """
        key = key_of(obj)
        held = self._objects.get(key)
        if held is None or held["metadata"].get("uid") != obj["metadata"].get("uid"):
            return False
        self._drop(key)
        return True

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
            self._versions.clear()
        seen = set()
        for read in listing.items:
            seen.add(read.key)
            if read.kept is not None or read.key in self._objects:
                self._keep(read)
        for key in sorted(self._objects.keys() - seen):
            if rewound or self._versions.get(key, 0) <= version:
                self._drop(key)
        self._progress = version
        self._metrics.relists.labels(self.resource.plural).inc()
        self.synced.set()
        return listing.resource_version

    def _read(self, obj: Object) -> _Read | None:
        """Identity and what to keep of an object; None for one that has no identity."""
        try:
            key, version = key_of(obj), version_of(obj)
        except Exception as error:
            self._on_skip(obj, "filter", error)
            return None
        try:
            kept = self._prune(obj)
            if kept is not None and not isinstance(kept, Frozen):
                kept = Frozen(kept)
            return _Read(key, version, kept)
        except Exception as error:
            self._on_skip(obj, "filter", error)
            return _Read(key, version, None, readable=False)

    def _keep(self, read: _Read) -> bool:
        """Take in what was read; what was kept of an object before outlives an unreadable one."""
        return read.readable and self._store(read.key, read.version, read.kept)

    def _log_skip(self, obj: Object, where: str, error: Exception) -> None:
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
        elif read.version >= self._versions.get(read.key, 0):
            self._drop(read.key)

    def _heard_now(self) -> None:
        self._error = ""
        self._heard = asyncio.get_running_loop().time()

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

    # --- the copy --------------------------------------------------------------------------

    def _store(self, key: ObjectKey, version: int, new: Frozen | None) -> bool:
        if version < self._versions.get(key, 0) or (
            version == self._versions.get(key) and key in self._objects
        ):
            return False
        if new is None:
            return self._drop(key)
        old = self._objects.get(key)
        if old is not None and old["metadata"].get("uid") != new["metadata"].get("uid"):
            self._drop(key)  # the same name, another object: not a modification
            old = None
        if old is not None:
            _share_spec(old, new)
        self.changes += 1
        self._objects[key] = new
        self._versions[key] = version
        if old is not None and _same(old, new):
            return True
        for store in self._indexes.values():
            store.replace(key, old, new)
        self._tell("ADDED" if old is None else "MODIFIED", old, new)
        return True

    def _drop(self, key: ObjectKey) -> bool:
        self._versions.pop(key, None)
        old = self._objects.pop(key, None)
        if old is None:
            return False
        self.changes += 1
        for store in self._indexes.values():
            store.replace(key, old, None)
        self._tell("DELETED", old, None)
        return True

    def _tell(self, event: ChangeType, old: Object | None, new: Object | None) -> None:
        for handler in self._handlers:
            try:
                handler(event, old, new)
            except Exception:
                # One bad handler must not blind the others, nor end the watch for good.
                logger.exception("Handler of %s failed", self.resource.plural)
                self._metrics.handler_errors.labels(self.resource.plural).inc()


def _share_spec(old: Object, new: Frozen) -> None:
    """Keep one copy of a spec over the versions that have it, so that it is read only once.

    Equal is not the same (1 and True are equal), so the server's count of changes must agree.
    """
    if new["metadata"].get("generation") != old["metadata"].get("generation"):
        return
    try:
        if "spec" in new and new["spec"] == old.get("spec"):
            new["spec"] = old["spec"]
    except RecursionError:
        return  # too deep to be compared


def _same(old: Object, new: Object) -> bool:
    """Equal but for the resourceVersion; objects too deep to be compared are not."""
    try:
        return _equal(old, new)
    except RecursionError:
        return False


def _equal(old: Object, new: Object) -> bool:
    old_meta, new_meta = old["metadata"], new["metadata"]
    if len(old) != len(new) or len(old_meta) != len(new_meta):
        return False
    return all(old.get(k) == v for k, v in new.items() if k != "metadata") and all(
        old_meta.get(k) == v for k, v in new_meta.items() if k != "resourceVersion"
    )


@dataclass(frozen=True, slots=True)
class _Read:
    """One object as the filter read it; `kept` is None for one that is not wanted."""

    key: ObjectKey
    version: int
    kept: Frozen | None
    readable: bool = True


class _IndexStore:
    def __init__(self, values: Index, on_skip: OnSkip) -> None:
        self._function = values
        self._on_skip = on_skip
        self._keys: dict[Hashable, set[ObjectKey]] = {}

    def replace(self, key: ObjectKey, old: Object | None, new: Object | None) -> None:
        before = self._values(old, tell=False)
        after = self._values(new, tell=True)
        for value in before - after:
            keys = self._keys[value]
            keys.discard(key)
            if not keys:
                del self._keys[value]
        for value in after - before:
            self._keys.setdefault(value, set()).add(key)

    def _values(self, obj: Object | None, *, tell: bool) -> set[Hashable]:
        """Under which values an object is found: the same for equal objects, none on an error."""
        if obj is None:
            return set()
        try:
            return set(self._function(obj))
        except Exception as error:
            if tell:
                self._on_skip(obj, "index", error)
            return set()

    def keys(self, value: Hashable) -> Iterable[ObjectKey]:
        return self._keys.get(value, ())

    def values(self) -> frozenset[Hashable]:
        return frozenset(self._keys)


class _CacheMetrics:
    def __init__(self, registry: Registry, cache: Cache) -> None:
        label = ("resource",)
        self.events = registry.counter(
            "pdserve_cache_events_total", "Watch events received, bookmarks not counted.", label
        )
        self.relists = registry.counter(
            "pdserve_cache_relists_total", "Full lists taken; more than one means lost watches.",
            label,
        )  # fmt: skip
        self.failures = registry.counter(
            "pdserve_cache_failures_total", "Lists and watches that failed or broke.", label
        )
        self.handler_errors = registry.counter(
            "pdserve_cache_handler_errors_total", "Change handlers that raised: a defect.", label
        )
        objects = registry.gauge("pdserve_cache_objects", "Objects held.", label)
        age = registry.gauge(
            "pdserve_cache_age_seconds", "Seconds since the API server was last heard.", label
        )
        synced = registry.gauge("pdserve_cache_synced", "1 once listed.", label)

        def collect() -> None:
            plural, state = cache.resource.plural, cache.state()
            objects.labels(plural).set(len(cache))
            age.labels(plural).set(state.age)
            synced.labels(plural).set(state.synced)

        registry.on_collect(collect)
