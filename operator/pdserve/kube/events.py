"""Kubernetes Events for people: what was done to an object, or why not.

`EventRecorder.event` is synchronous and never raises or blocks: it notes the event, and `run`
writes it in the background. Equal events within `WINDOW` become one Event object whose count rises;
each object has its own rate limit; what cannot be written is counted and dropped. Reasons come
from one list given at the start, so that documentation and alerts can name all of them.

The first of equal events is also a log line at INFO, so that the log of the process tells the same
as `kubectl describe`, for longer than Events are kept.

Core v1 Events are used: they carry a count, and `kubectl describe` shows them.
Events are not for machines: every actionable error is also a condition.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from pdserve.exposition import Registry
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.lines import say
from pdserve.kube.resource import EVENTS, Object

logger = logging.getLogger(__name__)

Level = Literal["Normal", "Warning"]

WINDOW = 600.0
"""Seconds after its last occurrence during which an equal event only raises the count."""
BURST = 10
REFILL_SECONDS = 60.0
"""Per object: `BURST` writes at once, then one in `REFILL_SECONDS`."""
MAX_REMEMBERED = 4096
MAX_PENDING = 1024
MAX_NOTE = 1024


class _Same(NamedTuple):
    """Events that agree in all of this are one event, counted."""

    uid: str
    level: Level
    reason: str
    note: str


@dataclass(slots=True)
class _Series:
    subject: Object
    action: str
    first: datetime
    last: datetime
    last_time: float
    count: int = 0
    name: str | None = None
    """Of the Event object once written."""


@dataclass(slots=True)
class _Allowance:
    tokens: float
    at: float


@dataclass(frozen=True, slots=True)
class Reporter:
    """Who reports: `component` (e.g. `pdserve-operator`) and `instance` (its pod's name)."""

    component: str
    instance: str = field(default="")


class EventRecorder:
    """See the module."""

    def __init__(
        self,
        client: KubeClient,
        reporter: Reporter,
        reasons: Collection[str],
        *,
        registry: Registry | None = None,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Make a recorder; nothing is written until `run`.

        Args:
            client: where to write.
            reporter: who reports.
            reasons: every reason that may be used.
            registry: where the metrics go.
            wall: the time of day, UTC.
        """
        self._client = client
        self._reporter = reporter
        self._reasons = frozenset(reasons)
        self._wall = wall
        self._series: OrderedDict[_Same, _Series] = OrderedDict()
        self._pending: OrderedDict[_Same, None] = OrderedDict()
        self._allowances: OrderedDict[str, _Allowance] = OrderedDict()
        self._wake = asyncio.Event()
        self._dropped = (registry or Registry()).counter(
            "pdserve_events_dropped_total",
            "Events not written: rate (per-object limit), full (backlog), error (refused), "
            "unknown_reason (a defect).",
            ("why",),
        )

    def event(
        self,
        obj: Object,
        level: Level,
        reason: str,
        note: str,
        *,
        action: str = "",
        about: Mapping[str, str | int] | None = None,
        logged: bool = True,
    ) -> None:
        """Note that something happened to `obj` (any object with apiVersion, kind and metadata).

        `reason` is one CamelCase word of the list; `note` a sentence for people; `action` what
        was done or tried (default: the reason); `about` further fields of the log line. With
        `logged=False` there is no line: the caller has logged it itself.
        """
        try:
            new = self._note(obj, level, reason, note, action)
            if new and logged:
                _say(obj, reason, note, about or {})
        except Exception:
            # Reporting to users must never stop the work that it reports.
            logger.exception("Event %s could not be noted", reason)
            self._dropped.labels("error").inc()

    def _note(self, obj: Object, level: Level, reason: str, note: str, action: str) -> bool:
        """Whether no equal event was noted lately."""
        if reason not in self._reasons:
            logger.error("Event reason %r is not in the list given to the recorder", reason)
            self._dropped.labels("unknown_reason").inc()
            return False
        note = note if len(note) <= MAX_NOTE else note[: MAX_NOTE - 1] + "…"
        now, today = asyncio.get_running_loop().time(), self._wall()
        subject = _reference(obj)
        same = _Same(subject.get("uid", ""), level, reason, note)
        series = self._series.get(same)
        new = series is None or now - series.last_time > WINDOW
        if series is None or new:
            series = self._series[same] = _Series(subject, action or reason, today, today, now)
        series.count += 1
        series.last, series.last_time = today, now
        self._series.move_to_end(same)
        if len(self._series) > MAX_REMEMBERED:
            self._series.popitem(last=False)
        self._enqueue(same, now)
        return new

    async def run(self) -> None:
        """Write what was noted, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.flush()

    async def flush(self) -> None:
        """Write everything noted so far; on a clean exit, after the last event."""
        while self._pending:
            same, _ = self._pending.popitem(last=False)
            series = self._series.get(same)
            if series is None:
                continue
            try:
                await self._write(same, series)
            except KubeError as error:
                self._dropped.labels("error").inc()
                logger.info("Event %s was not written: %s", same.reason, error)
            except Exception:
                self._dropped.labels("error").inc()
                logger.exception("Event %s could not be written", same.reason)

    def _enqueue(self, same: _Same, now: float) -> None:
        if same in self._pending:
            return
        if len(self._pending) >= MAX_PENDING:
            self._dropped.labels("full").inc()
        elif not self._allowed(same.uid, now):
            # The count goes on: the next write that is allowed tells all of it.
            self._dropped.labels("rate").inc()
        else:
            self._pending[same] = None
            self._wake.set()

    def _allowed(self, uid: str, now: float) -> bool:
        allowance = self._allowances.setdefault(uid, _Allowance(BURST, now))
        self._allowances.move_to_end(uid)
        if len(self._allowances) > MAX_REMEMBERED:
            self._allowances.popitem(last=False)
        refill = (now - allowance.at) / REFILL_SECONDS
        allowance.tokens, allowance.at = min(BURST, allowance.tokens + refill), now
        if allowance.tokens < 1:
            return False
        allowance.tokens -= 1
        return True

    async def _write(self, same: _Same, series: _Series) -> None:
        if series.name is not None:
            try:
                await self._raise_count(series)
                return
            except KubeError as error:
                if not error.is_not_found:
                    raise
                series.name = None  # Events expire (an hour by default): begin a new one
        created = await self._client.create(EVENTS, self._render(same, series))
        series.name = created["metadata"]["name"]

    async def _raise_count(self, series: _Series) -> None:
        assert series.name is not None  # noqa: S101 - narrows the type only
        await self._client.patch_json(
            EVENTS,
            series.name,
            [
                {"op": "replace", "path": "/count", "value": series.count},
                {"op": "replace", "path": "/lastTimestamp", "value": _stamp(series.last)},
            ],
            namespace=_namespace(series.subject),
        )

    def _render(self, same: _Same, series: _Series) -> Object:
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "generateName": f"{series.subject['name'][:200]}.",
                "namespace": _namespace(series.subject),
            },
            "involvedObject": series.subject,
            "type": same.level,
            "reason": same.reason,
            "message": same.note,
            "action": series.action,
            "count": series.count,
            "firstTimestamp": _stamp(series.first),
            "lastTimestamp": _stamp(series.last),
            "source": {"component": self._reporter.component},
            "reportingComponent": self._reporter.component,
            "reportingInstance": self._reporter.instance or self._reporter.component,
        }


def _say(obj: Object, reason: str, note: str, about: Mapping[str, str | int]) -> None:
    meta = obj["metadata"]
    where = {"kind": obj.get("kind"), "namespace": meta.get("namespace"), "name": meta["name"]}
    say(logger, f"{reason}: {note[:MAX_NOTE]}", reason=reason, **where, **about)


def _reference(obj: Object) -> Object:
    meta = obj["metadata"]
    reference = {
        "apiVersion": obj.get("apiVersion"),
        "kind": obj.get("kind"),
        "name": meta["name"],
        "namespace": meta.get("namespace"),
        "uid": meta.get("uid"),
        "resourceVersion": meta.get("resourceVersion"),
    }
    return {key: value for key, value in reference.items() if value}


def _namespace(subject: Object) -> str:
    """Events of cluster-scoped objects live in `default`, as the API requires."""
    return str(subject.get("namespace") or "default")


def _stamp(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
