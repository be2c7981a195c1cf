"""The list `ScenarioGroup.status.decisions`: what was decided, newest last, ten at most.

The newest Applied entry is what the operator wants (`counts`), so it is never pushed out by
entries that changed nothing. `controllers.shared.decision_writer` writes the list. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pdserve.api import DecisionRecord, ScenarioGroup
from pdserve.ratio.types import Counts
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.terms.times import rfc3339

KEPT = 10
MAX_MESSAGE = 1024
MAX_INPUTS = 24


def newest(group: ScenarioGroup) -> DecisionRecord | None:
    """The newest decision."""
    return group.status.decisions[-1] if group.status.decisions else None


def newest_applied(group: ScenarioGroup) -> DecisionRecord | None:
    """The newest decision that set counts."""
    return next((d for d in reversed(group.status.decisions) if d.outcome == "Applied"), None)


def counts_of(record: DecisionRecord) -> Counts:
    """The counts decided."""
    return Counts(record.to.groups, record.to.prefill, record.to.decode)


def counts_before(record: DecisionRecord) -> Counts:
    """The counts before."""
    return Counts(record.from_.groups, record.from_.prefill, record.from_.decode)


def live_counts(group: ScenarioGroup) -> Counts | None:
    """The counts in spec; None while one of the three is missing."""
    spec = group.spec
    if spec.replicas is None or spec.prefill.replicas is None or spec.decode.replicas is None:
        return None
    return Counts(spec.replicas, spec.prefill.replicas, spec.decode.replicas)


def entry(
    *,
    time: float,
    before: Counts,
    to: Counts,
    outcome: str,
    reason: str,
    message: str,
    inputs: Mapping[str, str],
) -> JsonObject:
    """One list entry as JSON; `time` in seconds since the epoch."""
    return {
        "time": rfc3339(time),
        "from": _counts(before),
        "to": _counts(to),
        "outcome": outcome,
        "reason": reason,
        "message": message[:MAX_MESSAGE],
        "inputs": dict(list(inputs.items())[:MAX_INPUTS]),
    }


def is_news(old: DecisionRecord | None, new: JsonMap) -> bool:
    """Whether an entry says anything that the newest one does not.

    Applied ones always do; the rest only when outcome, reason or target differ: a service that is
    held every 15 s for the same reason gets one entry, not one per tick.
    """
    if old is None or new["outcome"] == "Applied":
        return True
    seen = (old.outcome, old.reason, _counts(counts_of(old)))
    return seen != (new["outcome"], new["reason"], new["to"])


def appended(old: Sequence[JsonMap], new: JsonMap) -> list[JsonObject]:
    """The list with `new` at its end, trimmed to `KEPT` without losing the newest Applied one."""
    entries = [dict(e) for e in (*old, new)]
    applied = [i for i, e in enumerate(entries) if e["outcome"] == "Applied"]
    while len(entries) > KEPT:
        oldest = 1 if applied and applied[-1] == 0 else 0
        del entries[oldest]
        applied = [i for i, e in enumerate(entries) if e["outcome"] == "Applied"]
    return entries


def _counts(counts: Counts) -> dict[str, int]:
    return {"groups": counts.groups, "prefill": counts.prefill, "decode": counts.decode}
