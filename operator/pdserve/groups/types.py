"""The planner's input (what it sees) and output (the actions it asks for). Values only.

The planner is a pure function `plan(Observation) -> Plan`. `controllers` builds the observation
from caches and carries the actions out in order. Each action is idempotent and guarded (POST
answers 409 for a pod that exists, patches and deletes test the uid), so a crash between any two
leaves a state from which the next observation goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pdserve.groups.flip_types import FlipRole
from pdserve.groups.instances import InstanceObs
from pdserve.groups.rollout_types import DEFAULT, UNKNOWN, RolloutState, RolloutWanted
from pdserve.placement.types import GroupRequest, Shape, Site
from pdserve.terms import Role
from pdserve.topology.affinity import Term
from pdserve.topology.nodes import Toleration
from pdserve.wire.links import DrainReport, LinkReport
from pdserve.wire.names import instance_name
from pdserve.wire.peers import PeerTable


@dataclass(frozen=True, slots=True)
class RoleWanted:
    """One role of a P/D group: how many instances, and what each takes on its node."""

    count: int
    devices: int
    resource: str
    startup_deadline: float = 900.0
    tolerations: tuple[Toleration, ...] = ()
    """Of the rendered pod: placement skips nodes whose taints these do not tolerate."""
    nodes: frozenset[str] | None = None
    """Nodes from which its volumes are reached; None: every node."""
    requests: tuple[tuple[str, int], ...] = ()
    """What each takes beside its devices, as `topology.requests` counts it."""
    selector: frozenset[Term] | None = None
    """What each demands of its node's labels; None: nothing."""
    members: int = 1
    """Pods of each instance; all of the above is per pod."""

    @property
    def takes(self) -> tuple[tuple[str, int], ...]:
        """All that one pod takes on its node, ordered by resource."""
        return tuple(sorted({**dict(self.requests), self.resource: self.devices}.items()))

    @property
    def shape(self) -> Shape:
        """One instance as a question to placement."""
        return Shape(
            self.resource, self.devices, self.tolerations, self.nodes, self.requests,
            self.selector, self.members,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the ScenarioGroup asks for."""

    name: str
    replicas: int
    prefill: RoleWanted
    decode: RoleWanted
    revision: str
    """Hash of everything that changes a pod (never of counts)."""
    locality_mode: Literal["Preferred", "Required"] = "Preferred"
    locality_level: str | None = None
    drain_seconds: float = 60.0
    paused: bool = False
    """No planned change at all: what is asked for is not sure."""
    rollout: RolloutWanted = DEFAULT
    spares: int = 0  # decodes that each P/D group keeps beyond its count (`spares`)

    def kept(self, role: Role) -> int:
        """Instances of one role that a P/D group keeps, with its spares."""
        return self.role(role).count + (self.spares if role == "decode" else 0)

    def role(self, role: Role) -> RoleWanted:
        """The part for one role."""
        return self.prefill if role == "prefill" else self.decode

    def group_request(
        self,
        exclude: frozenset[str] = frozenset(),
        beside: tuple[Site, ...] = (),
        *,
        more: bool = False,
    ) -> GroupRequest:
        """One of its P/D groups as a question to placement; arguments as in `GroupRequest`."""
        return GroupRequest(
            prefill=self.prefill.count,
            decode=self.decode.count,
            prefill_shape=self.prefill.shape,
            decode_shape=self.decode.shape,
            mode=self.locality_mode,
            level=self.locality_level,
            exclude=exclude,
            beside=beside,
            more=more,
        )


@dataclass(frozen=True, slots=True)
class Suspect:
    """A node under suspicion after a fault there."""

    node: str
    time: float
    """Of the newest fault."""
    fault: str
    """Decides whether the node is barred or merely avoided."""


@dataclass(frozen=True, slots=True)
class Repair:
    """A slot's history of faults, kept in ScenarioGroup status `repairs[]`."""

    slot: str
    failures: int
    last_failure: float
    suspects: tuple[Suspect, ...] = ()
    """Nodes that failed this slot lately, the newest last; each is forgotten in its own time."""
    not_before: float = 0.0
    """No new pod in this slot before this time (backoff)."""
    last_uid: str | None = None
    """The pod last counted here: a fault is counted once, and names the pod that replaces it."""
    fault: str = ""
    """Its fault."""
    message: str = ""
    """What was seen of it."""

    @property
    def suspect_node(self) -> str | None:
        """The newest suspect."""
        return self.suspects[-1].node if self.suspects else None


@dataclass(frozen=True, slots=True)
class DeviceClaim:
    """What a pod took, and the slot that it is kept for (`claims`, `ownership`)."""

    pod: str
    uid: str
    """Of its instance."""
    slot: str
    """With role and group index: the slot that it is kept for, the pod's own one at first."""
    role: Role
    group_index: int
    node: str
    takes: tuple[tuple[str, int], ...]
    """All that the pod took there, ordered by resource, as `topology.requests` counts it."""

    @property
    def instance(self) -> str:
        """Name of the instance that the pod was a member of."""
        return instance_name(self.pod)


@dataclass(frozen=True, slots=True)
class DisruptionBudget:
    """What the PodDisruptionBudget of a P/D group says."""

    least: int
    """`minAvailable`: Ready pods that an eviction must leave."""
    since: float | None = None
    """When members were first seen on nodes that take no new instance; None while none is."""


@dataclass(frozen=True, slots=True)
class NewPod:
    """A pod to POST: one member of an instance.

    The engine adapter renders it; the plan fixes who and where.
    """

    name: str
    slot: str
    role: Role
    group_index: int
    revision: str
    node: str
    domains: Mapping[str, str] = field(default_factory=dict)
    replaces: str | None = None
    """`uid` of the instance whose place it takes."""
    scale_unit: bool = False
    member: int = 0
    """Which member it is; 0 is the leader."""
    members: int = 1
    """How many the instance has."""
    leader_uid: str = ""
    """Uid of the leader's pod, once that was made; empty for the leader itself."""

    @property
    def instance(self) -> str:
        """Name of its instance."""
        return instance_name(self.name)


@dataclass(frozen=True, slots=True)
class CreateGroup:
    """Create all pods of a new P/D group (gang), each leader before its instance's other members.

    Partial failure: delete what was made.
    """

    group_index: int
    pods: tuple[NewPod, ...]


@dataclass(frozen=True, slots=True)
class CreateInstance:
    """Create one instance: growth of a running group, or substitution of a faulty one."""

    pods: tuple[NewPod, ...]
    """Its members, the leader first; all or nothing."""
    reason: str
    stands_in: bool = False
    """What it replaces is sound, and on a node that takes no new instance."""

    @property
    def pod(self) -> NewPod:
        """The leader's."""
        return self.pods[0]


@dataclass(frozen=True, slots=True)
class PublishTable:
    """Write a peer table (a higher version than any before) to its ConfigMap."""

    group_index: int
    table: PeerTable


@dataclass(frozen=True, slots=True)
class MarkLinked:
    """Set condition `pdserve.io/Linked` True, recording the container it was verified for."""

    name: str
    uid: str
    container_id: str


@dataclass(frozen=True, slots=True)
class MarkUnlinked:
    """Set condition `pdserve.io/Linked` False with a reason."""

    name: str
    uid: str
    reason: str


@dataclass(frozen=True, slots=True)
class TellLeader:
    """Annotate a member's pod with the address of its instance's leader."""

    name: str
    uid: str
    address: str


@dataclass(frozen=True, slots=True)
class BeginDrain:
    """Annotate a pod with `pdserve.io/drain-started`: it leaves the routes, then drains."""

    name: str
    uid: str
    reason: str
    flip_to: Role | None = None  # the role that it takes then, instead of being deleted


@dataclass(frozen=True, slots=True)
class DeletePod:
    """Delete a pod by uid; never forced unless its Node is gone."""

    name: str
    uid: str
    reason: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class DeleteTable:
    """Delete the peer table of a P/D group that is gone."""

    group_index: int


@dataclass(frozen=True, slots=True)
class MoveScaleUnit:
    """Put the scale-unit label on this pod (its former carrier is gone or going)."""

    name: str
    uid: str
    present: bool


Action = (
    CreateGroup | CreateInstance | PublishTable | MarkLinked | MarkUnlinked | TellLeader
    | BeginDrain | FlipRole | DeletePod | DeleteTable | MoveScaleUnit
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything `plan` may look at, for one ScenarioGroup, at one moment.

    `tables`: newest peer table per group index. `links`/`drains`: reports keyed by pod name,
    only those of the container that runs now. `fabric`: see `topology`; it already counts every
    bound or reserved device, other ScenarioGroups' included.
    """

    wanted: Wanted
    instances: tuple[InstanceObs, ...]
    tables: Mapping[int, PeerTable]
    links: Mapping[str, LinkReport]
    drains: Mapping[str, DrainReport]
    repairs: tuple[Repair, ...]
    routed: frozenset[str]
    """Pods in the route table that gateways were last given: a drain waits until it left it."""
    now: float
    former: Mapping[str, Wanted] = field(default_factory=dict)
    """`wanted` with the template of each other revision that can still be rendered."""
    claims: tuple[DeviceClaim, ...] = ()
    """Devices that lost instances left to their P/D groups; the fabric counts them."""
    ahead: tuple[GroupRequest, ...] = ()
    """P/D groups of others that wait for devices and come first, the first one first."""
    bettered: Mapping[str, float] = field(default_factory=dict)
    """When each node last changed so that it may take what it refused before."""
    signals_seen: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """When each taint or condition of a node was first seen, by node and name of the signal; those
    of an annotation under the name ""."""
    budgets: Mapping[int, DisruptionBudget] = field(default_factory=dict)
    """The PodDisruptionBudgets that are there, by group index."""
    has_routes: bool = False
    """Whether there is a route table; a ScenarioGroup written by hand may be without gateways."""
    rollout: RolloutState = UNKNOWN
    """As status remembers it."""

    def knows_route(self, instance: str) -> bool:
        """Whether gateways know this instance; True for all where there is no route table."""
        return not self.has_routes or instance in self.routed

    def at(self, revision: str) -> Wanted | None:
        """What is wanted of a group of `revision`; None when its template is not known."""
        return self.wanted if revision == self.wanted.revision else self.former.get(revision)


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """One P/D group in status; its decodes are counted without spares."""

    index: int
    revision: str
    prefill_desired: int
    prefill_ready: int
    decode_desired: int
    decode_ready: int
    cells: tuple[str, ...]  # e.g. `leaf-a: 2P1D`
    cross_leaf_percent: int
    table_version: int
    spares_desired: int = 0
    spares_ready: int = 0


@dataclass(frozen=True, slots=True)
class ConditionState:
    """A Kubernetes condition without its times: those change only with the status."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, what to say, and when to look again though nothing changed."""

    actions: tuple[Action, ...]
    groups: tuple[GroupSummary, ...]
    conditions: tuple[ConditionState, ...]
    repairs: tuple[Repair, ...]
    requeue_after: float | None = None
    """Seconds until a deadline or backoff of this plan passes."""
    claims: tuple[DeviceClaim, ...] = ()
    """Claims to keep, for status."""
    blocked_request: GroupRequest | None = None
    """The P/D group that found no place, for `Observation.ahead` of others."""
    budgets: Mapping[int, DisruptionBudget] = field(default_factory=dict)
    """Each P/D group's PodDisruptionBudget; others are to be deleted."""
    reasons: tuple[str, ...] = ()
    """Human sentences: why each action, why not another (for `explain` and events)."""
    settled: bool = False
    """Nothing is to be done or waited for: of nodes, only those of its instances mean anything."""
    rollout: RolloutState = UNKNOWN
    """For status."""
