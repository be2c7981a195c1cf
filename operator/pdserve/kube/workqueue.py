"""Keys that want work: deduplicated, one worker per key at a time, retried with backoff.

Triggers `add` keys; workers `get` one, look at the world, act, and call `done`. A key added while
it is in work runs again after `done`. Kinds take turns, and within a kind namespaces, so that ten
thousand keys of one never hold up one of another. A namespace has a bounded number of keys in
work, so that slow work in one takes no worker from another. Metric names and meanings are
controller-runtime's, one `name` per kind, so its dashboards work.

Neighbours: `cache` handlers add, `controllers` work. It knows nothing of what a key means; time is
the event loop's.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from pdserve.exposition import Registry

_BUCKETS = tuple(10.0**exponent for exponent in range(-8, 4))
"""controller-runtime's: 10 ns to 1000 s."""

_CLOCK_STEP = 1e-6
_REPLACED = 64
"""Requests replaced by earlier ones that are kept, beside as many as there are requests."""
_Turns = OrderedDict[str, "OrderedDict[QueueKey, float]"]
"""Ready keys by namespace, with when each was added; in the order in which their turn comes."""


class QueueKey(NamedTuple):
    """What to look at: an object of a kind. `kind` names the reconciler that works on it."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return "/".join(part for part in self if part)


class QueueClosed(Exception):  # noqa: N818 - the end of work, not a mistake
    """`shut_down` was called and no key is left."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delay before the n-th retry of a key: `base * 2**(n-1)`, at most `cap`, times a jitter.

    The jitter is uniform in [1 - spread, 1 + spread]; seconds.
    """

    base: float = 0.1
    cap: float = 60.0
    spread: float = 0.2

    def delay(self, failures: int, rng: random.Random) -> float:
        """Seconds to wait after this many failures in a row (at least 1)."""
        exponent = min(failures - 1, 30)
        spread = rng.uniform(1 - self.spread, 1 + self.spread)
        return min(self.base * 2.0**exponent, self.cap) * spread


class WorkQueue:
    """See the module. Belongs to one event loop; not thread-safe."""

    def __init__(
        self,
        *,
        per_namespace: int | None = None,
        spacing: float = 0.0,
        registry: Registry | None = None,
        backoff: Backoff | None = None,
        rng: random.Random | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Make a queue.

        Args:
            per_namespace: keys of one namespace in work at once; None: no bound. Keys without a
                namespace count as one more namespace.
            spacing: least seconds between the end of work on a key and the next work on it. One
                change of an object usually comes with others: the next work sees them all.
            registry: where the metrics go.
            backoff: for `retry`.
            rng: the jitter's randomness; seed it in tests.
            clock: monotonic seconds; default: the event loop's.
        """
        self._per_namespace = per_namespace
        self._spacing = spacing
        self._backoff = backoff or Backoff()
        # Spreads retries over time; nothing secret depends on it.
        self._rng = rng or random.Random()  # noqa: S311 - jitter and schedules, no secrets
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._ready: OrderedDict[str, _Turns] = OrderedDict()
        self._working: dict[QueueKey, float] = {}
        self._busy: Counter[str] = Counter()
        self._dirty: set[QueueKey] = set()
        self._ignored: QueueKey | None = None
        self._rests_until: OrderedDict[QueueKey, float] = OrderedDict()
        self._failures: dict[QueueKey, int] = {}
        self._due: dict[QueueKey, float] = {}
        self._again: dict[QueueKey, float] = {}
        self._heap: list[tuple[float, int, QueueKey]] = []
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = 0.0
        self._waiters: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._closed = False
        self._metrics = _QueueMetrics(registry or Registry(), self)

    def __len__(self) -> int:
        """Keys ready for a worker now."""
        return sum(self.depth().values())

    def add(self, key: QueueKey) -> None:
        """Want work on `key` as soon as possible."""
        if self._closed or key == self._ignored:
            return
        if key in self._working:
            if key not in self._dirty:
                self._dirty.add(key)
                self._metrics.adds.labels(key.kind, key.kind).inc()
            return
        rest = self._rest_of(key)
        if rest > 0:
            self.add_after(key, rest)
        elif self._offer(key):
            self._metrics.adds.labels(key.kind, key.kind).inc()
            self._wake()

    @contextmanager
    def ignoring(self, key: QueueKey) -> Iterator[None]:
        """Drop what is added for `key` meanwhile: what its own work writes tells it nothing new.

        Only around code that does not wait.
        """
        self._ignored = key
        try:
            yield
        finally:
            self._ignored = None

    def add_after(self, key: QueueKey, delay: float) -> None:
        """Queue `key` in `delay` seconds; of several such requests the earliest counts."""
        if self._closed:
            return
        if delay <= 0:
            self.add(key)
            return
        self._plan(self._due, key, delay)

    def look_again(self, key: QueueKey, delay: float | None) -> None:
        """Queue `key` in `delay` seconds because time passes, in place of what was said before.

        Only for the work on `key` itself, which knows what its former looks waited for; what others
        asked with `add_after` stays. None: no time changes anything.
        """
        self._again.pop(key, None)
        if delay is not None and not self._closed:
            self._plan(self._again, key, delay)

    def _plan(self, dues: dict[QueueKey, float], key: QueueKey, delay: float) -> None:
        due = self._clock() + delay
        if due >= dues.get(key, float("inf")):
            return
        dues[key] = due
        heapq.heappush(self._heap, (due, next(self._order), key))
        if len(self._heap) > 2 * (len(self._due) + len(self._again)) + _REPLACED:
            self._heap = [entry for entry in self._heap if self._stands(entry[2], entry[0])]
            heapq.heapify(self._heap)
        self._arm()

    def _stands(self, key: QueueKey, due: float) -> bool:
        """Whether a request was not replaced."""
        return self._due.get(key) == due or self._again.get(key) == due

    def retry(self, key: QueueKey) -> float:
        """Add `key` again after its backoff; returns the delay in seconds.

        The backoff grows with each failure in a row, until `forget`.
        """
        self._failures[key] = self._failures.get(key, 0) + 1
        self._metrics.retries.labels(key.kind, key.kind).inc()
        delay = self._backoff.delay(self._failures[key], self._rng)
        self.add_after(key, delay)
        return delay

    def forget(self, key: QueueKey) -> None:
        """The key went well: its next failure starts from the smallest delay."""
        self._failures.pop(key, None)

    def failures(self, key: QueueKey) -> int:
        """How often `key` failed in a row so far, 0 or more."""
        return self._failures.get(key, 0)

    async def get(self) -> QueueKey:
        """The next key of a namespace that is within its bound; then call `done`.

        Kinds in turn, within a kind namespaces in turn, within a namespace in order of adding.

        Raises:
            QueueClosed: shut down, and nothing left.
        """
        while (found := self._take()) is None:
            if self._closed and not self._ready:
                self._wake()  # the next one that waits in vain
                raise QueueClosed
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters[waiter] = None
            try:
                await waiter
            except asyncio.CancelledError:
                if self._ready:
                    self._wake()  # it may have been promised to this worker
                raise
            finally:
                self._waiters.pop(waiter, None)
        key, added = found
        now = self._clock()
        self._working[key] = now
        self._busy[key.namespace] += 1
        self._metrics.queue_seconds.labels(key.kind, key.kind).observe(now - added)
        return key

    def done(self, key: QueueKey) -> None:
        """Work on `key` ended, well or not.

        It runs again, after the spacing, if it was added meanwhile.
        """
        started = self._working.pop(key)
        self._busy[key.namespace] -= 1
        if not self._busy[key.namespace]:
            del self._busy[key.namespace]
        self._metrics.work_seconds.labels(key.kind, key.kind).observe(self._clock() - started)
        self._begin_rest(key)
        if key in self._dirty:
            self._dirty.discard(key)
            if self._spacing:
                self.add_after(key, self._spacing)
            elif not self._closed:
                self._offer(key)
        if self._ready or self._closed:
            self._wake()  # a key of this namespace may have waited for its turn

    def shut_down(self) -> None:
        """Accept no more keys; workers get what is ready, then `QueueClosed`."""
        self._closed = True
        self._due.clear()
        self._again.clear()
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def depth(self) -> dict[str, int]:
        """How many keys are ready, by kind; those in work and those that wait are not counted."""
        return {
            kind: sum(len(keys) for keys in turns.values()) for kind, turns in self._ready.items()
        }

    def working(self) -> dict[QueueKey, float]:
        """Keys in work and for how many seconds."""
        now = self._clock()
        return {key: now - started for key, started in self._working.items()}

    def _rest_of(self, key: QueueKey) -> float:
        """Seconds until `key` may be worked on again; 0: now."""
        rest = self._rests_until.get(key, 0.0) - self._clock()
        # `_fire` comes up to a clock step early; what it adds must not wait for the rest of it.
        return rest if rest > 2 * _CLOCK_STEP else 0.0

    def _begin_rest(self, key: QueueKey) -> None:
        if not self._spacing:
            return
        now = self._clock()
        while self._rests_until and next(iter(self._rests_until.values())) <= now:
            self._rests_until.popitem(last=False)
        self._rests_until[key] = now + self._spacing
        self._rests_until.move_to_end(key)

    def _offer(self, key: QueueKey) -> bool:
        """Make `key` ready; False if it was."""
        keys = self._ready.setdefault(key.kind, OrderedDict()).setdefault(
            key.namespace, OrderedDict()
        )
        if key in keys:
            return False
        keys[key] = self._clock()
        self._wake()
        return True

    def _take(self) -> tuple[QueueKey, float] | None:
        """Take out the next key and when it was added; None if none may be worked on now."""
        for kind, turns in self._ready.items():
            for namespace, keys in turns.items():
                if self._per_namespace is None or self._busy[namespace] < self._per_namespace:
                    found = keys.popitem(last=False)
                    # To the back: other namespaces and kinds come first.
                    del turns[namespace]
                    if keys:
                        turns[namespace] = keys
                    del self._ready[kind]
                    if turns:
                        self._ready[kind] = turns
                    return found
        return None

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
                return

    def _arm(self) -> None:
        """See to it that `_fire` runs when the earliest request is due."""
        if self._heap and (self._timer is None or self._heap[0][0] < self._armed_for):
            if self._timer is not None:
                self._timer.cancel()
            self._armed_for = self._heap[0][0]
            loop = asyncio.get_running_loop()
            delay = max(0.0, self._heap[0][0] - self._clock())
            self._timer = loop.call_later(delay, self._fire)

    def _fire(self) -> None:
        self._timer = None
        # A loop fires timers up to its clock's resolution early: waiting for the rest would spin.
        now = self._clock() + _CLOCK_STEP
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            if self._stands(key, due):
                for dues in (self._due, self._again):
                    if dues.get(key) == due:
                        del dues[key]
                self.add(key)
        self._arm()


class _QueueMetrics:
    def __init__(self, registry: Registry, queue: WorkQueue) -> None:
        labels = ("name", "controller")
        self._queue = queue
        self._known: set[str] = set()
        self.adds = registry.counter("workqueue_adds_total", "Keys added, by kind.", labels)
        self.retries = registry.counter(
            "workqueue_retries_total", "Keys added again after a failure.", labels
        )
        self.queue_seconds = registry.histogram(
            "workqueue_queue_duration_seconds", "Time a key waited for a worker.", labels, _BUCKETS
        )
        self.work_seconds = registry.histogram(
            "workqueue_work_duration_seconds", "Time a worker spent on a key.", labels, _BUCKETS
        )
        self._depth = registry.gauge("workqueue_depth", "Keys waiting for a worker.", labels)
        self._unfinished = registry.gauge(
            "workqueue_unfinished_work_seconds",
            "Seconds of work in progress not yet in work_duration; steady growth means stuck.",
            labels,
        )
        self._longest = registry.gauge(
            "workqueue_longest_running_processor_seconds",
            "Seconds the longest running worker has been on its key.",
            labels,
        )
        registry.on_collect(self._collect)

    def _collect(self) -> None:
        depth, running = self._queue.depth(), self._queue.working()
        self._known |= depth.keys() | {key.kind for key in running}
        for kind in self._known:
            times = [seconds for key, seconds in running.items() if key.kind == kind]
            self._depth.labels(kind, kind).set(depth.get(kind, 0))
            self._unfinished.labels(kind, kind).set(sum(times))
            self._longest.labels(kind, kind).set(max(times, default=0.0))
