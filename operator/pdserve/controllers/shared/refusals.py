"""Conditions that say why one of our objects is not acted on.

`Reconciled` is about the reconciler, `Decided` about the ratio loop. An object without failures has
neither. A condition is False, with the reason, while something is refused or fails, and True again
after the next success. They are written over the raw status, because the object itself may be what
cannot be read. Neighbours: `worker` and `ratio_loop` call it; `skipped` counts and writes Events.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Final

from pdserve.controllers.shared import event_reasons as reasons
from pdserve.controllers.shared.caches import PDSERVICES, ROCE_DOMAINS, SCENARIO_GROUPS
from pdserve.controllers.shared.context import OperatorContext
from pdserve.controllers.shared.triggers import DOMAIN, GROUP, SERVICE
from pdserve.frozen import remembered
from pdserve.groups.types import ConditionState
from pdserve.kube.errors import KubeError
from pdserve.kube.ownership import NotOursError
from pdserve.kube.resource import Object
from pdserve.kube.workqueue import QueueKey
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.terms.times import rfc3339
from pdserve.wire import names

log = logging.getLogger(__name__)

RECONCILED: Final = "Reconciled"
DECIDED: Final = "Decided"
FAILED: Final = "ReconcileFailed"
PATIENCE: Final = 3
"""Failed attempts in a row (under 2 s) after which errors that often pass are reported."""
MAX_MESSAGE: Final = 2048
_RESOURCES: Final = {SERVICE: PDSERVICES, GROUP: SCENARIO_GROUPS, DOMAIN: ROCE_DOMAINS}
_AT_ONCE: Final = frozenset({400, 401, 403, 405, 413, 415, 422})
"""Statuses that the same request gets again."""


class InvalidObject(Exception):  # noqa: N818 - what a user stored, not a defect
    """Today's rules refuse an object of ours; only a change of it helps."""


def is_reported(error: KubeError, failures: int) -> bool:
    """Whether users learn of an answer of the API server.

    `failures`: failed attempts in a row, this one included. Refusals are reported at once, other
    errors from PATIENCE attempts on, conflicts and an unreachable server never.
    """
    if error.is_unreachable or error.is_conflict:
        return False
    return error.status in _AT_ONCE or failures >= PATIENCE


def text_of(error: Exception) -> str:
    """An error as conditions word it: the same text for the same error."""
    if isinstance(error, KubeError):
        return f"the API server refused a request: {error!s:.1500}"
    return f"a value that cannot be read, or a defect: {type(error).__name__}: {error!s:.1500}"


async def invalid(context: OperatorContext, key: QueueKey, error: Exception) -> None:
    """Tell that an object of ours is not acted on because today's rules refuse it."""
    obj = _object(context, key)
    if obj is not None:
        context.events.event(obj, "Warning", reasons.INVALID, str(error))
        await _tell(context, key, obj, RECONCILED, reasons.INVALID, str(error))


async def refused(
    context: OperatorContext, key: QueueKey, error: KubeError, condition: str = RECONCILED
) -> None:
    """Tell that the API server refuses what an object of ours needs."""
    obj = _object(context, key)
    if obj is not None:
        message = text_of(error)
        context.events.event(obj, "Warning", reasons.API_REFUSED, message)
        await _tell(context, key, obj, condition, reasons.API_REFUSED, message)


async def not_ours(
    context: OperatorContext, key: QueueKey, error: NotOursError, condition: str = RECONCILED
) -> None:
    """Report that a foreign object has a name that an object of ours needs."""
    obj = _object(context, key)
    if obj is not None:
        context.metrics.refusals.labels(error.resource.kind).inc()
        context.events.event(obj, "Warning", reasons.REFUSED, str(error))
        await _tell(context, key, obj, condition, reasons.REFUSED, str(error))


async def failed(
    context: OperatorContext,
    key: QueueKey,
    error: Exception,
    where: str,
    condition: str = RECONCILED,
) -> None:
    """Tell that acting on an object of ours ended with an error that nothing expects."""
    obj = _object(context, key)
    if obj is not None:
        context.skipped(obj, where, error)
        await _tell(context, key, obj, condition, FAILED, text_of(error))


async def went_well(context: OperatorContext, key: QueueKey, condition: str = RECONCILED) -> None:
    """Take a refusal back."""
    obj = _object(context, key)
    if obj is not None and _held(obj, condition).get("status") == "False":
        good = ConditionState(condition, "True", "Resumed", "the last attempt went well")
        await _write(context, key, obj, (good,))


def with_conditions(
    obj: Object, wanted: Iterable[ConditionState], now: float
) -> list[JsonObject] | None:
    """The conditions of a raw object with `wanted` put in; None when it has them already.

    `now`: seconds since the epoch. Entries that are no conditions are left out.
    """
    generation = obj["metadata"].get("generation")
    observed = generation if isinstance(generation, int) else 0
    merged = {c["type"]: c for c in _conditions(obj)}
    before = dict(merged)
    for w in wanted:
        old = merged.get(w.type, {})
        same = old.get("status") == w.status
        merged[w.type] = {
            "type": w.type,
            "status": w.status,
            "reason": w.reason,
            "message": w.message[:MAX_MESSAGE],
            "lastTransitionTime": old["lastTransitionTime"] if same else rfc3339(now),
            "observedGeneration": observed,
        }
    return None if merged == before else [merged[t] for t in sorted(merged)]


async def _tell(
    context: OperatorContext, key: QueueKey, obj: Object, condition: str, reason: str, message: str
) -> None:
    found = [ConditionState(condition, "False", reason, message)]
    if condition == RECONCILED:
        # A reconciler that failed late has said more of both, and what serves goes on serving.
        if key.kind == SERVICE and _is_old(obj, "Degraded", "True"):
            found.append(ConditionState("Degraded", "True", reason, message))
        if key.kind == DOMAIN or _is_old(obj, "Ready", "True"):
            found.append(ConditionState("Ready", "False", reason, message))
    await _write(context, key, obj, found)


async def _write(
    context: OperatorContext, key: QueueKey, obj: Object, wanted: Iterable[ConditionState]
) -> None:
    conditions = with_conditions(obj, wanted, context.now())
    if conditions is None:
        return
    resource = _RESOURCES[key.kind]
    try:
        live = await context.client.patch_status(
            resource, key.name, {"conditions": conditions},
            namespace=key.namespace or None, uid=obj["metadata"].get("uid"),
            field_manager=names.FIELD_MANAGER,
        )  # fmt: skip
    except KubeError as error:
        # The Event tells it all the same; a retry of the key comes here again.
        log.warning("%s: its condition cannot be written: %s", key, error)
        return
    context.caches.of(resource).observe(live)


def _object(context: OperatorContext, key: QueueKey) -> Object | None:
    return context.caches.of(_RESOURCES[key.kind]).get(key.name, key.namespace)


def _held(obj: Object, kind: str) -> JsonObject:
    return _by_type(obj).get(kind, {})


def _is_old(obj: Object, kind: str, kept: str) -> bool:
    """Whether a condition is absent, or was found for an older spec; never if it is `kept`."""
    held = _held(obj, kind)
    observed, generation = held.get("observedGeneration"), obj["metadata"].get("generation")
    return held.get("status") != kept and (not held or observed != generation)


@remembered
def _by_type(obj: JsonMap) -> Mapping[str, JsonObject]:
    return {c["type"]: c for c in reversed(_conditions(obj))}


def _conditions(obj: JsonMap) -> list[JsonObject]:
    status = obj.get("status")
    found = status.get("conditions") if isinstance(status, dict) else None
    return [
        c
        for c in (found if isinstance(found, list) else ())
        if isinstance(c, dict)
        and all(isinstance(c.get(k), str) for k in ("type", "status", "lastTransitionTime"))
    ]
