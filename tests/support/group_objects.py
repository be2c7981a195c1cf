"""Pods, nodes and processes of the small world, and how the API server would show them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from tests.support.builders import RESOURCE

from pdserve.groups.types import NewPod
from pdserve.terms import Role
from pdserve.wire import names
from pdserve.wire.peers import PeerTable


@dataclass
class Machine:
    """A Node."""

    name: str
    labels: dict[str, str]
    capacity: int
    foreign: int
    """Devices that foreign pods hold."""
    silent_since: float | None = None
    unhealthy: bool = False
    memory: int | None = None
    """As much as so many devices' pods take, on a node that has more devices than it needs."""


@dataclass
class Process:
    """What runs in an engine's container: it forgets everything when it restarts."""

    container: str
    table: PeerTable | None = None
    up: set[str] = field(default_factory=set)
    completed: bool = False
    draining: bool = False


@dataclass
class Pod:
    """A pod of ours."""

    new: NewPod
    uid: str
    created: float
    devices: int
    memory: int = 0
    bound: bool = False
    process: Process | None = None
    restarts: int = 0
    failed: bool = False
    crash_loop: bool = False
    terminating: bool = False
    drain_started: float | None = None
    flips: bool = False
    """Its engine changes its role while it runs."""
    flip_to: Role | None = None
    linked_container: str | None = None
    was_linked: bool = False
    """Condition Linked is False, not absent."""
    leader_address: str = ""
    scale_unit: bool = False
    requests: int = 0
    """Requests it works on, or holds KV for."""

    @cached_property
    def spec(self) -> str:
        """What never changes of it."""
        return f"{self.new} {self.uid} {self.created} {self.takes}"

    @cached_property
    def takes(self) -> tuple[tuple[str, int], ...]:
        """What its container requests."""
        takes = {RESOURCE: self.devices, **({"memory": self.memory} if self.memory else {})}
        return tuple(sorted(takes.items()))

    @property
    def state(self) -> tuple[Hashable, ...]:
        """All that `raw_pod` shows, but for its node and the time."""
        p = self.process
        shown = None if p is None else (p.container, p.completed, p.draining)
        return (
            self.spec, shown, self.bound, self.restarts, self.failed, self.crash_loop,
            self.terminating, self.drain_started, self.linked_container, self.scale_unit,
            self.leader_address, self.was_linked, self.flips, self.flip_to, self.new.role,
        )  # fmt: skip

    def flip(self, role: Role) -> None:
        """It gets its new role in one write; the engine makes its parts anew by a table."""
        self.new = replace(self.new, role=role)
        self.drain_started = self.flip_to = None
        if self.process is not None:
            self.process = Process(self.process.container)


def raw_pod(pod: Pod, machine: Machine | None, now: float) -> dict[str, Any]:
    """The Pod as the API server would show it."""
    new, process = pod.new, pod.process
    heard = machine is not None and machine.silent_since is None
    linked = pod.linked_container is not None
    ready = heard and linked and process is not None and process.completed and not process.draining
    labels = {
        names.LABEL_ROLE: new.role,
        names.LABEL_GROUP_INDEX: str(new.group_index),
        names.LABEL_REVISION: new.revision,
        **{names.TOPOLOGY_PREFIX + k: v for k, v in new.domains.items()},
    }
    if pod.scale_unit:
        labels[names.LABEL_SCALE_UNIT] = "true"
    annotations = {}
    if new.members > 1:
        labels[names.LABEL_MEMBER] = str(new.member)
        annotations[names.ANNOTATION_MEMBERS] = str(new.members)
        annotations[names.ANNOTATION_LEADER] = new.leader_uid
        annotations[names.ANNOTATION_LEADER_ADDRESS] = pod.leader_address
    if pod.drain_started is not None:
        annotations[names.ANNOTATION_DRAIN] = stamp(pod.drain_started)
    if pod.flips:
        annotations[names.ANNOTATION_FLIPS] = "true"
    if pod.flip_to:
        annotations[names.ANNOTATION_FLIP_TO] = pod.flip_to
    if new.replaces:
        annotations[names.ANNOTATION_REPLACES] = new.replaces
    meta: dict[str, Any] = {
        "name": new.name,
        "uid": pod.uid,
        "creationTimestamp": stamp(pod.created),
        "labels": labels,
        "annotations": annotations,
    }
    if pod.terminating:
        meta["deletionTimestamp"] = stamp(now)
    state: dict[str, Any] = {}
    if process is not None:
        state = {"running": {}}
    elif pod.failed:
        state = {"terminated": {"exitCode": 137}}
    elif pod.crash_loop:
        state = {"waiting": {"reason": "CrashLoopBackOff"}}
    conditions = [{"type": "Ready", "status": str(bool(ready))}]
    if linked or pod.was_linked:
        message = pod.linked_container or ""
        conditions.append(
            {"type": names.CONDITION_LINKED, "status": str(linked), "message": message}
        )
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [new.node]}]}
    return {
        "metadata": meta,
        "spec": {
            "nodeName": new.node if pod.bound else None,
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}
                }
            },
            "containers": [
                {"name": "engine", "resources": {"limits": {r: str(n) for r, n in pod.takes}}}
            ],
        },
        "status": {
            "phase": "Failed" if pod.failed else "Running",
            "podIP": f"10.0.0.{pod.uid.removeprefix('uid-')}" if pod.bound else None,
            "conditions": conditions,
            "containerStatuses": [
                {
                    "name": "engine",
                    "state": state,
                    "restartCount": pod.restarts,
                    "containerID": process.container if process else None,
                }
            ],
        },
    }


def raw_node(machine: Machine) -> dict[str, Any]:
    """The Node as the API server would show it."""
    ready: dict[str, Any] = {"type": "Ready", "status": "True"}
    if machine.silent_since is not None:
        since = stamp(machine.silent_since)
        ready = {"type": "Ready", "status": "Unknown", "lastTransitionTime": since}
    amounts = {RESOURCE: str(machine.capacity)}
    if machine.memory is not None:
        amounts = {RESOURCE: str(2 * machine.capacity), "memory": str(machine.memory)}
    annotations = {}
    if machine.unhealthy:
        ids = ",".join(str(k) for k in range(machine.capacity))
        annotations[names.ANNOTATION_UNHEALTHY_DEVICES] = ids
    return {
        "metadata": {"name": machine.name, "labels": machine.labels, "annotations": annotations},
        "spec": {},
        "status": {"capacity": amounts, "allocatable": amounts, "conditions": [ready]},
    }


def foreign_pods(machine: Machine) -> list[dict[str, Any]]:
    """Foreign pods on a node."""
    resource = RESOURCE if machine.memory is None else "memory"
    limits = {"limits": {resource: str(machine.foreign)}}
    pod = {"metadata": {"name": "other"}, "spec": {"containers": [{"resources": limits}]}}
    return [pod] if machine.foreign else []


def stamp(seconds: float) -> str:
    """RFC 3339 of seconds since the epoch."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()
