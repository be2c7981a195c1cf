"""Faults counted per slot: back-off before the next try, and nodes to keep away from for a while.

The record lives in ScenarioGroup status, so a restart finds it; losing it costs one extra try.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from pdserve.groups.instances import InstanceObs
from pdserve.groups.types import Observation, Repair, Suspect
from pdserve.groups.view import PlanDraft
from pdserve.placement import NoFit
from pdserve.topology import Fabric

T = TypeVar("T")
BACKOFF_FIRST = 10.0
"""Seconds before the second replacement in a slot; the first one is immediate."""
ADMISSION_FIRST = 1.0
"""The same after a node refused the pod at admission: no container ran, so a try costs little, and
a kubelet frees the devices of a pod that was deleted by force within a second or so."""
BACKOFF_MAX = 300.0
SUSPECT_SECONDS = 300.0
"""How long a node stays suspect after a fault."""
REFUSED_SECONDS = 1200.0
"""How long a node stays suspect to which the scheduler did not bind: longer than the back-off of
several tries, so that a search over many such nodes does not begin again at the first. It is
avoided, never barred: when all nodes refused, only the back-off is waited for."""
CURED_SECONDS = 30.0
"""Longest back-off after a refusal once a node has changed since: it may take what it refused."""
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
REFUSALS = frozenset({"Unschedulable", "NodeRefused"})
"""The node did not take the pod: scheduler or kubelet said no. It may take it after a change."""
CORRUPTIONS = frozenset({"KvCorrupt"})
"""KV that comes from the node or goes to it arrives corrupt (`corruption`)."""
NODE_FAULTS = GONE_FAULTS | DEVICE_FAULTS | REFUSALS | CORRUPTIONS
"""The node's own faults: it is suspect from the first on, and barred while it is away or its
devices are not well. Others make it suspect only when they repeat. It is avoided while another node
has room."""
IMAGE_FAULTS = frozenset({"ImageError"})
"""The image's own faults: no node is suspect, however often they repeat."""


@dataclass(frozen=True, slots=True)
class Suspects:
    """Nodes that placement keeps away from: `barred` always, `avoided` while others have room."""

    barred: frozenset[str]
    avoided: tuple[str, ...]
    """The first one is tried again first: what changed since it refused, then the oldest fault."""

    def away_from(self, find: Callable[[frozenset[str]], T | NoFit]) -> T | NoFit:
        """What `find` finds without these nodes, else with as few avoided ones as it takes.

        `find` is given the nodes to leave out, and finds something whenever it does with more of
        them left out.
        """
        found = find(self.barred.union(self.avoided))
        if not isinstance(found, NoFit) or not self.avoided:
            return found
        found = find(self.barred)
        few, enough = 1, len(self.avoided)
        while few < enough and not isinstance(found, NoFit):
            middle = (few + enough) // 2
            closer = find(self.barred.union(self.avoided[middle:]))
            if isinstance(closer, NoFit):
                few = middle + 1
            else:
                found, enough = closer, middle
        return found


def count_faults(observation: Observation, draft: PlanDraft) -> None:
    """Step 1: enter new faults, drop what is long past. A pod is counted once, by its uid."""
    now = observation.now
    clamped = (clamp(r, now) for r in observation.repairs)
    repairs = {r.slot: r for r in clamped if now - r.last_failure < FORGET_SECONDS}
    for instance in sorted(observation.instances, key=lambda i: (i.created, i.name)):
        # A pod that a plan took away already (scale-down, roll), or that a user deletes, is not
        # a failure of its slot.
        if instance.fault is None or instance.drain_started is not None or instance.terminating:
            continue
        known = repairs.get(instance.slot)
        if known is not None and known.last_uid == instance.uid:
            continue
        if _has_replacement(instance, observation.instances):
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
        not_before=min(repair.not_before, last + _delay(repair.failures, repair.fault) + 1.0),
        suspects=tuple(replace(s, time=min(s.time, now)) for s in repair.suspects),
    )


def suspects(
    repairs: Iterable[Repair], now: float, fabric: Fabric, bettered: Mapping[str, float]
) -> Suspects:
    """Nodes under suspicion at `now` (Unix seconds); `bettered` as in `Observation`."""
    barred: set[str] = set()
    avoided: dict[str, float] = {}
    for repair in repairs:
        for suspect in _current(repair, now, fabric):
            if _is_barred(suspect, fabric):
                barred.add(suspect.node)
            avoided[suspect.node] = max(suspect.time, avoided.get(suspect.node, suspect.time))

    def order(node: str) -> tuple[bool, float, str]:
        return bettered.get(node, 0.0) <= avoided[node], avoided[node], node

    return Suspects(frozenset(barred), tuple(sorted(avoided.keys() - barred, key=order)))


def waits_until(repair: Repair, bettered: Mapping[str, float], fabric: Fabric) -> float:
    """Unix time in seconds of the next try in a slot; `bettered` as in `Observation`."""
    last = repair.last_failure
    cured = (time > last for node, time in bettered.items() if node in fabric.nodes)
    if repair.fault not in REFUSALS or not any(cured):
        return repair.not_before
    return min(repair.not_before, last + CURED_SECONDS)


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
    sick = view is None or not view.devices_well
    return suspect.fault in GONE_FAULTS or (suspect.fault in DEVICE_FAULTS and sick)


def _is_back(suspect: Suspect, fabric: Fabric) -> bool:
    view = fabric.nodes.get(suspect.node)
    back = view is not None and view.ready and not view.out_of_service
    return suspect.fault in GONE_FAULTS and back


def _lasts(suspect: Suspect) -> float:
    return REFUSED_SECONDS if suspect.fault == "Unschedulable" else SUSPECT_SECONDS


def _delay(failures: int, fault: str) -> float:
    """Back-off after so many failures in a row, the last of them `fault`, in seconds."""
    first = ADMISSION_FIRST if fault == "NodeRefused" else BACKOFF_FIRST
    return 0.0 if failures <= 1 else min(BACKOFF_MAX, first * 2.0 ** min(failures - 2, 10))


def _entry(instance: InstanceObs, known: Repair | None, now: float) -> Repair:
    failures = known.failures + 1 if known is not None else 1
    assert instance.fault is not None  # noqa: S101 - the caller's filter
    found = [s for s in known.suspects if now - s.time < _lasts(s)] if known is not None else []
    at_fault = instance.fault in NODE_FAULTS or failures > 1
    for node in _nodes_at_fault(instance) if at_fault else ():
        found = [s for s in found if s.node != node]
        found.append(Suspect(node, now, instance.fault))
    return Repair(
        slot=instance.slot,
        failures=failures,
        last_failure=now,
        suspects=tuple(found[-MAX_SUSPECTS:]),
        not_before=now + _delay(failures, instance.fault),
        last_uid=instance.uid,
        fault=instance.fault,
        message=instance.fault_message[:MAX_MESSAGE],
    )


def _nodes_at_fault(instance: InstanceObs) -> tuple[str, ...]:
    """The nodes of the members that failed; of all where only the instance as a whole did."""
    if instance.fault in IMAGE_FAULTS:
        return ()
    own = [m.node for m in instance.members if m.fault == instance.fault]
    return tuple(dict.fromkeys(n for n in own or instance.nodes if n))


def _has_replacement(instance: InstanceObs, instances: Iterable[InstanceObs]) -> bool:
    """An older instance of the slot whose successor exists: counted when the successor was made."""
    return any(i.replaces == instance.uid for i in instances)
