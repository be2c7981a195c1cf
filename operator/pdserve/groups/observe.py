"""Views of pods and nodes -> `InstanceObs`.

`instance_obs` reads one pod; `joined` puts the pods of one instance together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeGuard

from pdserve.groups.devices import devices_of
from pdserve.groups.health import (
    HealthLimits,
    Since,
    clamped,
    classify,
    is_silent,
    linked_since,
    ready_since,
    unready_since,
    unscheduled,
    up_since,
)
from pdserve.groups.instances import Fault, InstanceObs, MemberObs
from pdserve.terms import ROLES, Role
from pdserve.terms.times import timestamp
from pdserve.topology.nodes import NodeView
from pdserve.topology.pods import UNTOLD, PodView
from pdserve.wire import names


class NotOurs(ValueError):  # noqa: N818 - a fact about the pod, not a failure of this program
    """The pod lacks a label that every instance carries; the message names it."""


def instance_obs(
    pod: PodView,
    node: NodeView | None,
    now: float,
    limits: HealthLimits | None = None,
    since: Since | None = None,
    silent: float | None = None,
) -> InstanceObs:
    """Read an instance as one of its pods shows it.

    Args:
        pod: a pod of an instance.
        node: the Node it is bound or pinned to; None when no such Node exists.
        now: seconds since the epoch.
        limits: thresholds of `health` (defaults when None).
        since: translates stamps to the clock of `now` (default `health.clamped`).
        silent: see `health.classify`.

    Raises:
        NotOurs: a label is missing or malformed.
    """
    role, index, member, size = _identity(pod)
    since = clamped(now) if since is None else since
    limits = limits or HealthLimits()
    verdict = classify(pod, node, now, limits, since, silent)
    drain = timestamp(pod.annotations.get(names.ANNOTATION_DRAIN))
    return InstanceObs(
        name=names.instance_name(pod.name),
        uid=pod.annotations.get(names.ANNOTATION_LEADER) or pod.uid,
        slot=names.slot_of(pod.name),
        role=role,
        group_index=index,
        revision=pod.labels.get(names.LABEL_REVISION, ""),
        created=since("created", pod.created),
        members=(_member(pod, node, member, verdict.fault),),
        size=size,
        domains=_domains(pod),
        bound=bool(pod.node),
        running=pod.engine.running,
        restarts=pod.engine.restarts,
        ready=pod.ready.true,
        ever_linked=pod.linked != UNTOLD,
        terminating=pod.deleting,
        drain_started=None if drain is None else since("drain", drain),
        flips=size == 1 and pod.annotations.get(names.ANNOTATION_FLIPS) == "true",
        flip_to=_flip_to(pod, role) if size == 1 and drain is not None else None,
        replaces=pod.annotations.get(names.ANNOTATION_REPLACES) or None,
        fault=verdict.fault,
        fault_message=verdict.message,
        unscheduled=unscheduled(pod) or "",
        recheck_after=verdict.recheck_after,
        silent=is_silent(node),
        up_since=None if is_silent(node) else up_since(pod, since),
        ready_since=ready_since(pod, since),
        unready_since=unready_since(pod, since),
        linked_since=linked_since(pod, since),
        startup_deadline=limits.startup_deadline,
    )


def _identity(pod: PodView) -> tuple[Role, int, int, int]:
    """Role, group index, member index and number of members."""
    role = pod.labels.get(names.LABEL_ROLE)
    if role not in ROLES:
        raise NotOurs(f"pod {pod.name}: label {names.LABEL_ROLE} is {role!r}, want {ROLES}")
    index = pod.labels.get(names.LABEL_GROUP_INDEX)
    if not is_group_index(index):
        raise NotOurs(
            f"pod {pod.name}: label {names.LABEL_GROUP_INDEX} is {index!r}, want a number"
        )
    member = pod.labels.get(names.LABEL_MEMBER, "0")
    size = pod.annotations.get(names.ANNOTATION_MEMBERS, "1")
    if not is_group_index(member) or not is_group_index(size):
        raise NotOurs(f"pod {pod.name}: it is member {member!r} of {size!r}, want numbers")
    return role, int(index), int(member), int(size)


def _flip_to(pod: PodView, role: Role) -> Role | None:
    """The other role, where the pod is marked to take it."""
    return next(
        (r for r in ROLES if r == pod.annotations.get(names.ANNOTATION_FLIP_TO) and r != role), None
    )


def _domains(pod: PodView) -> dict[str, str]:
    """Part of the fabric by level, as the labels of the pod say."""
    return {
        key.removeprefix(names.TOPOLOGY_PREFIX): value
        for key, value in sorted(pod.labels.items())
        if key.startswith(names.TOPOLOGY_PREFIX)
    }


def _member(pod: PodView, node: NodeView | None, index: int, fault: Fault | None) -> MemberObs:
    return MemberObs(
        pod=pod.name,
        uid=pod.uid,
        node=pod.place,
        index=index,
        devices=devices_of(pod, node),
        pod_ip=pod.ip or None,
        container_id=pod.engine.id or None,
        linked_container=(pod.linked.message or None) if pod.linked.true else None,
        ready=pod.ready.true,
        terminating=pod.deleting,
        draining=timestamp(pod.annotations.get(names.ANNOTATION_DRAIN)) is not None,
        leader_address=pod.annotations.get(names.ANNOTATION_LEADER_ADDRESS, ""),
        scale_unit=names.LABEL_SCALE_UNIT in pod.labels,
        fault=fault,
        holds=pod.takes,
        claimed=tuple(pod.requested.items()) if pod.requested_devices else (),
    )


def joined(parts: Iterable[InstanceObs]) -> tuple[InstanceObs, ...]:
    """The instances that these pods make, each of them read by `instance_obs`."""
    found: dict[str, list[InstanceObs]] = {}
    for part in parts:
        found.setdefault(part.name, []).append(part)
    return tuple(p[0] if p[0].size == 1 else _together(p) for p in found.values())


def _together(parts: Sequence[InstanceObs]) -> InstanceObs:
    """One instance of the members that are there; without some of them it is lost."""
    here = sorted(parts, key=lambda p: p.members[0].index)
    whole = len(here) == here[0].size
    fault, message = _worst(here)
    drains = [p.drain_started for p in here if p.drain_started is not None]
    return replace(
        here[0],
        members=tuple(m for p in here for m in p.members),
        bound=whole and all(p.bound for p in here),
        running=whole and all(p.running for p in here),
        restarts=sum(p.restarts for p in here),
        ready=whole and all(p.ready for p in here),
        ever_linked=any(p.ever_linked for p in here),
        terminating=any(p.terminating for p in here),
        drain_started=min(drains, default=None),
        fault=fault,
        fault_message=message,
        unscheduled=next((p.unscheduled for p in here if p.unscheduled), ""),
        recheck_after=min((p.recheck_after for p in here if p.recheck_after), default=None),
        silent=any(p.silent for p in here),
        up_since=_last([p.up_since for p in here]),
        ready_since=_last([p.ready_since for p in here]),
        unready_since=max((p.unready_since for p in here if p.unready_since), default=None),
        linked_since=_last([p.linked_since for p in here]),
    )


_FAULTS: tuple[Fault, ...] = (
    "NodeDeleted", "NodeRefused", "PodFailed", "NodeLost", "DeviceUnhealthy", "ImageError",
    "CrashLoop", "Unschedulable", "StartupDeadline",
)  # fmt: skip
"""The worst one first, in the order in which `health` looks for them."""


def _worst(here: Sequence[InstanceObs]) -> tuple[Fault | None, str]:
    """The fault of the worst member, with its name; one whose members go is leaving, not lost."""
    for fault in _FAULTS:
        for part in here:
            if part.fault == fault:
                return fault, f"{part.members[0].pod}: {part.fault_message}"
    missing = here[0].size - len(here)
    if not missing or any(p.terminating for p in here):
        return None, ""
    return "MemberLost", f"{missing} of its {here[0].size} pods are gone"


def _last(times: Sequence[float | None]) -> float | None:
    """The last of them; None while one has not happened."""
    known = [t for t in times if t is not None]
    return max(known) if len(known) == len(times) else None


def is_group_index(label: object) -> TypeGuard[str]:
    """Whether a label's value is the index of a P/D group, as the operator writes it."""
    return isinstance(label, str) and re.fullmatch(r"0|[1-9][0-9]{0,5}", label) is not None
