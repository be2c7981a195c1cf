"""Faults counted per slot: back-off before the next try, and nodes to keep away from for a while.

The record lives in ScenarioGroup status, so a restart finds it; losing it costs one extra try.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pdserve.groups.types import InstanceObs, Observation, Repair
from pdserve.groups.view import Draft

BACKOFF_FIRST = 10.0
"""Seconds before the second replacement in a slot; the first one is immediate."""
BACKOFF_MAX = 300.0
SUSPECT_SECONDS = 300.0
"""How long a node stays suspect after a fault."""
FORGET_SECONDS = 1800.0
"""A slot without a fault for so long starts afresh."""

NODE_FAULTS = frozenset({"NodeLost", "NodeDeleted", "DeviceUnhealthy", "Unschedulable"})
"""The node's own faults: it is barred. Others make it suspect only when they repeat, and then it
is avoided while another node has room."""


@dataclass(frozen=True, slots=True)
class Suspects:
    """Nodes that placement keeps away from: `barred` always, `avoided` while others have room."""

    barred: frozenset[str]
    avoided: frozenset[str]


def count_faults(observation: Observation, draft: Draft) -> None:
    """Step 1: enter new faults, drop what is long past. A pod is counted once, by its uid."""
    now = observation.now
    repairs = {r.slot: r for r in observation.repairs if now - r.last_failure < FORGET_SECONDS}
    for instance in sorted(observation.instances, key=lambda i: (i.created, i.name)):
        # A pod that a plan took away already (scale-down, roll) is not a failure of its slot.
        if instance.fault is None or instance.drain_started is not None:
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


def suspects(repairs: Iterable[Repair], now: float) -> Suspects:
    """Nodes under suspicion now."""
    barred: set[str] = set()
    avoided: set[str] = set()
    for repair in repairs:
        if repair.suspect_node is None or now - repair.last_failure >= SUSPECT_SECONDS:
            continue
        (barred if repair.fault in NODE_FAULTS else avoided).add(repair.suspect_node)
    return Suspects(frozenset(barred), frozenset(avoided - barred))


def suspicion_ends(repairs: Iterable[Repair], now: float) -> float | None:
    """Seconds until the first suspicion ends, or None without any."""
    ends = [
        r.last_failure + SUSPECT_SECONDS - now
        for r in repairs
        if r.suspect_node is not None and now - r.last_failure < SUSPECT_SECONDS
    ]
    return min(ends) if ends else None


def _entry(instance: InstanceObs, known: Repair | None, now: float) -> Repair:
    failures = known.failures + 1 if known is not None else 1
    delay = 0.0 if failures == 1 else min(BACKOFF_MAX, BACKOFF_FIRST * 2.0 ** (failures - 2))
    assert instance.fault is not None  # noqa: S101 - the caller's filter
    node_at_fault = instance.fault in NODE_FAULTS
    return Repair(
        slot=instance.slot,
        failures=failures,
        last_failure=now,
        suspect_node=instance.node if node_at_fault or failures > 1 else None,
        not_before=now + delay,
        last_uid=instance.uid,
        fault=instance.fault,
    )


def _stood_in_for(instance: InstanceObs, instances: Iterable[InstanceObs]) -> bool:
    """An older pod of the slot whose successor exists: counted when the successor was made."""
    return any(i.replaces == instance.uid for i in instances)
