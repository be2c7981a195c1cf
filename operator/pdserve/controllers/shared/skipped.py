"""Objects that could not be read: skipped, counted, reported. Their neighbours go on.

Every loop over many objects (a cache's filter, an index, a plan's observation, a ratio tick, the
linker) passes what it cannot read to `Skipped` and takes the next one. `Skipped` counts it in
`pdserve_operator_skipped_objects_total`, logs each cause once and writes an Event on the object.
Caches fill before this process may lead: what was skipped until then is reported when it leads.
Neighbours: `refusals` puts the same into conditions of our own kinds.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple, TypeVar

from pdserve.api import InvalidObjectError
from pdserve.controllers.shared import event_reasons as reasons
from pdserve.controllers.shared.metrics import OperatorMetrics
from pdserve.controllers.shared.scope import Scope
from pdserve.kube.events import EventRecorder
from pdserve.kube.held import K, OnSkip
from pdserve.terms.shown import shown
from pdserve.topology import NodeView, PodView
from pdserve.wire.bounds import WireError

log = logging.getLogger(__name__)
T = TypeVar("T")

REMEMBERED: Final = 1024
"""Causes that are remembered; a cause that falls out may be logged again."""
MAX_CAUSE: Final = 400
"""Characters of a cause."""


class _Cause(NamedTuple):
    kind: str
    name: str
    where: str
    text: str


class Skipped:
    """Call it with an object, where it was skipped, and why."""

    def __init__(self, metrics: OperatorMetrics, scope: Scope) -> None:
        self._metrics = metrics
        self._scope = scope
        self._events: EventRecorder | None = None
        self._seen: OrderedDict[_Cause, object] = OrderedDict()

    def __call__(self, obj: object, where: str, error: Exception) -> None:
        """Count, log and tell that `obj` was left out in `where` because of `error`. No errors."""
        if isinstance(obj, PodView | NodeView):
            obj = obj.reference
        kind, name = _identity(obj)
        self._metrics.skipped.labels(kind, where).inc()
        cause = _Cause(kind, name, where, _text(error))
        if cause not in self._seen:
            # What others wrote wrongly is in the text; anything else may be a defect.
            stack = None if isinstance(error, WireError | InvalidObjectError) else error
            log.warning("Skipped %s %s in %s: %s", kind, name, where, cause.text, exc_info=stack)
        self._seen[cause] = obj
        self._seen.move_to_end(cause)
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        self._tell(cause, obj)

    @contextmanager
    def told_by(self, events: EventRecorder) -> Iterator[None]:
        """While inside, write Events; those of what was skipped before come first."""
        self._events = events
        try:
            for cause, obj in list(self._seen.items()):
                self._tell(cause, obj)
            yield
        finally:
            self._events = None

    def _tell(self, cause: _Cause, obj: object) -> None:
        if self._events is None or not isinstance(obj, dict):
            return
        if not self._scope.leaves(_namespace(obj)):
            note = f"left out in {cause.where}: {cause.text}"
            self._events.event(obj, "Warning", reasons.SKIPPED, note, logged=False)


def read_each(
    objects: Iterable[K], read: Callable[[K], T], skipped: OnSkip, where: str
) -> Iterator[T]:
    """`read` of every object; those for which it raises are handed to `skipped` instead."""
    for obj in objects:
        try:
            found = read(obj)
        except Exception as error:
            skipped(obj, where, error)
        else:
            yield found


def _text(error: Exception) -> str:
    try:
        said = str(error)
    except Exception:
        said = "(its message cannot be shown)"
    return f"{type(error).__name__}: {said}"[:MAX_CAUSE]


def _namespace(obj: object) -> str:
    meta = obj.get("metadata") if isinstance(obj, dict) else None
    return str(meta.get("namespace") or "") if isinstance(meta, dict) else ""


def _identity(obj: object) -> tuple[str, str]:
    """Kind (for a metric's label: bounded) and `namespace/name` of anything."""
    if not isinstance(obj, dict):
        return "unknown", shown(obj)
    kind, meta = obj.get("kind"), obj.get("metadata")
    named = isinstance(kind, str) and kind.isalnum() and len(kind) <= 40
    meta = meta if isinstance(meta, dict) else {}
    name = "/".join(
        str(meta[k])[:80] for k in ("namespace", "name") if isinstance(meta.get(k), str)
    )
    return str(kind) if named else "unknown", name or "without a name"
