"""An instance and its members as the caches show them. Values only; no decisions here.

`observe` makes them of pods and nodes; everything else in this package plans on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pdserve.terms import Device, Role

Fault = Literal[
    "PodFailed", "CrashLoop", "NodeLost", "NodeDeleted", "DeviceUnhealthy",
    "StartupDeadline", "Unschedulable", "NodeRefused", "ImageError", "MemberLost", "KvCorrupt",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class MemberObs:
    """One member of an instance as the cache shows it: a pod, its node and its devices there."""

    pod: str
    uid: str
    node: str
    """Where it is pinned (and, once bound, runs)."""
    index: int = 0
    """Among the members; 0 is the leader, whose address is the instance's endpoint."""
    devices: tuple[Device, ...] = ()
    pod_ip: str | None = None
    container_id: str | None = None
    linked_container: str | None = None
    """Container id recorded when Linked was last set True; None when not True."""
    ready: bool = False
    """Kubernetes' Ready condition: containers ready and every readiness gate True."""
    terminating: bool = False
    draining: bool = False
    """Carries the annotation `wire.names.ANNOTATION_DRAIN`."""
    leader_address: str = ""
    """What its annotation `wire.names.ANNOTATION_LEADER_ADDRESS` says; "" without one."""
    scale_unit: bool = False
    """Carries the label `wire.names.LABEL_SCALE_UNIT`."""
    fault: Fault | None = None
    """Its own, as `groups.health` judges its pod and node."""
    holds: Mapping[str, int] = field(default_factory=dict)
    """What it takes on its node (what a rollout would get back), as `topology.requests` counts."""
    claimed: tuple[tuple[str, int], ...] = ()
    """What it was made for, whether or not it still holds it, as `topology.requests` counts it."""


@dataclass(frozen=True, slots=True)
class InstanceObs:
    """One instance as the cache shows it: `members` together. Times: seconds since the epoch (UTC).

    Its health is that of its worst member, and it runs, is bound and is Ready when all are.
    """

    name: str
    """Also the name of its leader's pod, and its id in tables and routes."""
    uid: str
    """Of its leader's pod: it tells an instance from a former one of the same name."""
    slot: str
    """Durable place, `wire.names.slot_name`; the name is the slot plus a short hash."""
    role: Role
    group_index: int
    revision: str
    created: float
    members: tuple[MemberObs, ...]
    """Those that are there, by index; at least one."""
    size: int = 1
    """How many members it was made with."""
    domains: Mapping[str, str] = field(default_factory=dict)
    """Level -> part of the fabric that its leader is in."""
    bound: bool = False
    running: bool = False
    """The engine containers run."""
    restarts: int = 0
    ready: bool = False
    ever_linked: bool = False
    """It was Linked once: it has served, or could have."""
    terminating: bool = False
    """Some member is being deleted."""
    drain_started: float | None = None
    flips: bool = False
    """It can change its role while it runs: `wire.names.ANNOTATION_FLIPS`."""
    flip_to: Role | None = None
    """The role that it takes once its drain has ended, instead of being deleted."""
    replaces: str | None = None
    """`uid` of the instance whose place it took."""
    fault: Fault | None = None
    """Set by the observer (`groups.health`) when the instance is lost; None while it is healthy
    or merely starting."""
    fault_message: str = ""
    unscheduled: str = ""
    """Why the scheduler binds it to no node, in the scheduler's words; "" where it said nothing."""
    recheck_after: float | None = None
    """Seconds until the observer would judge this instance differently though nothing changes
    (a suspect node's or a starting pod's deadline); None when no deadline runs."""

    silent: bool = False
    """A node of it is gone or not Ready: nothing new is known of it."""
    up_since: float | None = None
    """When its engine was first seen to answer its startup probe; None while it does not, or while
    its node is silent."""
    ready_since: float | None = None
    """When Ready was last seen to change to True; None while it is not."""
    unready_since: float | None = None
    """When Ready was last seen to change to not True; None while it is True or was never told."""
    linked_since: float | None = None
    """When condition Linked was last seen to be set; None while it is not True."""
    startup_deadline: float = 900.0
    """Seconds that it may take until it answers, and from then on until it is Ready."""

    @property
    def node(self) -> str:
        """The leader's node: where the instance counts as being."""
        return self.members[0].node

    @property
    def nodes(self) -> tuple[str, ...]:
        """The node of each member."""
        return tuple(m.node for m in self.members)

    @property
    def leader(self) -> MemberObs | None:
        """The member that has the endpoint; None when its pod is gone."""
        return self.members[0] if self.members[0].index == 0 else None

    @property
    def pod_ip(self) -> str | None:
        """The leader's address; None while it has none."""
        first = self.members[0]
        return first.pod_ip if first.index == 0 else None

    @property
    def container_id(self) -> str | None:
        """The leader's container, which answers for the instance; None while there is none."""
        return self.leader.container_id if self.leader is not None else None

    @property
    def linked(self) -> bool:
        """Linked, for the containers that run now (a restart in place loses it)."""
        return all(
            m.linked_container is not None and m.linked_container == m.container_id
            for m in self.members
        )

    @property
    def scale_unit(self) -> bool:
        """Some member carries the label `wire.names.LABEL_SCALE_UNIT`."""
        return any(m.scale_unit for m in self.members)
