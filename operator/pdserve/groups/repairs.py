"""Faults counted per slot: back-off before the next try, and nodes to keep away from for a while.

The record lives in ScenarioGroup status, so a restart finds it; losing it costs one extra try.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from pdserve.groups.types import InstanceObs, Observation, Repair, Suspect
from pdserve.groups.view import Draft
from pdserve.topology import Fabric

BACKOFF_FIRST = 10.0
"""Seconds before the second replacement in a slot; the first one is immediate."""
BACKOFF_MAX = 300.0
SUSPECT_SECONDS = 300.0
"""How long a node stays suspect after a fault."""
REFUSED_SECONDS = 1200.0
"""How long a node stays suspect to which the scheduler did not bind: longer than the back-off of
several tries, so that a search over many such nodes does not begin again at the first."""
FORGET_SECONDS = 1800.0
"""A slot without a fault for so long starts afresh."""
MAX_SUSPECTS = 16
"""Suspects kept per slot; the oldest goes first."""
MAX_MESSAGE = 512
"""Characters kept of what was seen of a fault."""

GONE_FAULTS = frozenset({"NodeLost", "NodeDeleted"})
"""The node was away: it is barred until it is Ready again, and cleared at once then."""
DEVICE_FAULTS = frozenset({"DeviceUnhealthy"})
"""A device was unhealthy: the node is barred until all of its devices are well, then avoided."""
NODE_FAULTS = GONE_FAULTS | DEVICE_FAULTS | {"Unschedulable"}
"""The node's own faults: it is barred. Others make it suspect only when they repeat, and then it
is avoided while another node has room."""
IMAGE_FAULTS = frozenset({"ImageError"})
"""The image's own faults: no node is suspect, however often they repeat."""


@dataclass(frozen=True, slots=True)
class Suspects:
    """Nodes that placement keeps away from: `barred` always, `avoided` while others have room."""

    barred: frozenset[str]
    avoided: frozenset[str]


def count_faults(observation: Observation, draft: Draft) -> None:
    """Step 1: enter new faults, drop what is long past. A pod is counted once, by its uid."""
    now = observation.now
    clamped = (clamp(r, now) for r in observation.repairs)
    repairs = {r.slot: r for r in clamped if now - r.last_failure < FORGET_SECONDS}
    for instance in sorted(observation.instances, key=lambda i: (i.created, i.name)):
        # A pod that a plan took away already (scale-down, roll), or that somebody deletes, is not
        # a failure of its slot.
        if instance.fault is None or instance.drain_started is not None or instance.terminating:
            continue
        known = repairs.get(instance.slot)
        if known is not None and known.last_uid == instance.uid:
            continue
        if _stood_in_for(instance, observation.instances):
            continue
        repairs[instance.slot] = _entry(instance, known, now)
        draft.reasons.append(
            f"{instance.name} is lost: {instance.fault}"
            + (f" ({instance.fault_message})" if instance.fault_message else "")
        )
    draft.repairs = tuple(repairs[slot] for slot in sorted(repairs))


def clamp(repair: Repair, now: float) -> Repair:
    """The record with no time after `now` and no back-off above its bound.

    It was written by a clock that may have been set back since: a wait of seconds must not become
    one of hours.
    """
    last = min(repair.last_failure, now)
    return replace(
        repair,
        last_failure=last,
        not_before=min(repair.not_before, last + _delay(repair.failures) + 1.0),
        suspects=tuple(replace(s, time=min(s.time, now)) for s in repair.suspects),
    )


def suspects(repairs: Iterable[Repair], now: float, fabric: Fabric) -> Suspects:
    """Nodes under suspicion now."""
    barred: set[str] = set()
    avoided: set[str] = set()
    for repair in repairs:
        for suspect in _current(repair, now, fabric):
            (barred if _is_barred(suspect, fabric) else avoided).add(suspect.node)
    return Suspects(frozenset(barred), frozenset(avoided - barred))


def suspicion_ends(repairs: Iterable[Repair], now: float, fabric: Fabric) -> float | None:
    """Seconds until the first suspicion ends by time, or None without any."""
    ends = [
        s.time + _lasts(s) - now
        for r in repairs
        for s in _current(r, now, fabric)
        if s.fault not in GONE_FAULTS
    ]
    return min(ends) if ends else None


def _current(repair: Repair, now: float, fabric: Fabric) -> list[Suspect]:
    return [s for s in repair.suspects if now - s.time < _lasts(s) and not _is_back(s, fabric)]


def _is_barred(suspect: Suspect, fabric: Fabric) -> bool:
    view = fabric.nodes.get(suspect.node)
    well = view is not None and view.devices_well
    return suspect.fault in NODE_FAULTS and not (suspect.fault in DEVICE_FAULTS and well)


def _is_back(suspect: Suspect, fabric: Fabric) -> bool:
    view = fabric.nodes.get(suspect.node)
    return suspect.fault in GONE_FAULTS and view is not None and view.ready


def _lasts(suspect: Suspect) -> float:
    return REFUSED_SECONDS if suspect.fault == "Unschedulable" else SUSPECT_SECONDS


def _delay(failures: int) -> float:
    """Back-off after so many failures in a row, in seconds."""
    return 0.0 if failures <= 1 else min(BACKOFF_MAX, BACKOFF_FIRST * 2.0 ** min(failures - 2, 10))


def _entry(instance: InstanceObs, known: Repair | None, now: float) -> Repair:
    failures = known.failures + 1 if known is not None else 1
    assert instance.fault is not None  # noqa: S101 - the caller's filter
    found = [s for s in known.suspects if now - s.time < _lasts(s)] if known is not None else []
    at_fault = instance.fault in NODE_FAULTS or failures > 1
    if at_fault and instance.node and instance.fault not in IMAGE_FAULTS:
        found = [s for s in found if s.node != instance.node]
        found.append(Suspect(instance.node, now, instance.fault))
    return Repair(
        slot=instance.slot,
        failures=failures,
        last_failure=now,
        suspects=tuple(found[-MAX_SUSPECTS:]),
        not_before=now + _delay(failures),
        last_uid=instance.uid,
        fault=instance.fault,
        message=instance.fault_message[:MAX_MESSAGE],
    )


def _stood_in_for(instance: InstanceObs, instances: Iterable[InstanceObs]) -> bool:
    """An older pod of the slot whose successor exists: counted when the successor was made."""
    return any(i.replaces == instance.uid for i in instances)
