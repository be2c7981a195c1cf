"""What the planner's steps share: instances sorted into groups, and each one's stage of life.

It is derived from the Observation alone; no step keeps state. `PlanDraft` is the plan in the
making: actions, reasons, and the fabric with the promises so far.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from pdserve.groups.instances import InstanceObs
from pdserve.groups.routable import is_routable
from pdserve.groups.types import (
    Action,
    ConditionState,
    DeviceClaim,
    Observation,
    Repair,
    RoleWanted,
)
from pdserve.placement import GroupRequest, PlacedInstance, Site, site_of
from pdserve.terms import ROLES, Role
from pdserve.topology import Fabric, Reservation
from pdserve.wire.peers import PeerTable


def leaving(instance: InstanceObs) -> bool:
    """True for an instance that no longer counts: faulty, draining or being deleted."""
    return instance.fault is not None or instance.terminating or instance.drain_started is not None


@dataclass(frozen=True)
class GroupView:
    """One P/D group as observed. `members` are all its instances, by role then name.

    What is asked again and again is derived once.
    """

    index: int
    members: tuple[InstanceObs, ...]
    table: PeerTable | None

    @cached_property
    def staying(self) -> tuple[InstanceObs, ...]:
        """Members that are not on their way out."""
        return tuple(i for i in self.members if not leaving(i))

    @cached_property
    def routable(self) -> frozenset[str]:
        """Names of members that can serve now (`is_routable`)."""
        return frozenset(i.name for i in self.members if is_routable(i, self.table))

    def of_role(self, role: Role) -> tuple[InstanceObs, ...]:
        """Staying members of one role, of the group's revision."""
        return self._by_role[role]

    @cached_property
    def _by_role(self) -> Mapping[Role, tuple[InstanceObs, ...]]:
        own = [i for i in self.staying if i.revision == self.revision]
        return {role: tuple(i for i in own if i.role == role) for role in ROLES}

    def ready(self, role: Role, without: Collection[str] = ()) -> int:
        """How many members of one role, but for these names, can serve now."""
        here = (i for i in self.of_role(role) if i.name not in without)
        return sum(1 for i in here if i.name in self.routable)

    @cached_property
    def serving(self) -> bool:
        """At least one prefill and one decode can serve now."""
        return all(self.ready(role) for role in ROLES)

    def surely_serving(self, observation: Observation) -> bool:
        """`serving`, their nodes have lately said so, and gateways know them: planned changes may
        lean on it.
        """
        sure = {
            i.role for i in self.staying
            if not i.silent and i.revision == self.revision and i.name in self.routable
            and observation.knows_route(i.name)
        }  # fmt: skip
        return len(sure) == len(ROLES)

    @cached_property
    def revision(self) -> str:
        """Revision of the group: a request never passes from one revision to another.

        Members of two revisions meet only when a lost one comes back after its group went on
        without it. Then the one with more members that can serve counts, then with more members,
        then the smaller name; `resize` gives up the others.
        """
        counts: dict[str, list[int]] = {}
        for instance in self.staying or self.members:
            count = counts.setdefault(instance.revision, [0, 0])
            count[0] += instance.name in self.routable
            count[1] += 1
        return min(counts, key=lambda r: (-counts[r][0], -counts[r][1], r), default="")

    @property
    def has_served(self) -> bool:
        """Some member was Linked once, or stands in for a lost one."""
        return any(i.ever_linked or i.replaces is not None for i in self.members)

    @property
    def gone(self) -> bool:
        """The group as a whole is on its way out: a planned drain took every member it had."""
        planned = any(i.drain_started is not None for i in self.members)
        return planned and not self.staying

    def named(self, instance: InstanceObs) -> bool:
        """The peer table names this instance."""
        return self.table is not None and self.table.peer(instance.name) is not None


def group_views(observation: Observation) -> tuple[GroupView, ...]:
    """Groups that have instances, by index."""
    found: dict[int, list[InstanceObs]] = {}
    for instance in observation.instances:
        found.setdefault(instance.group_index, []).append(instance)
    return tuple(
        GroupView(
            index,
            tuple(sorted(found[index], key=lambda i: (ROLES.index(i.role), i.name))),
            observation.tables.get(index),
        )
        for index in sorted(found)
    )


@dataclass(slots=True)
class PlanDraft:
    """A plan in the making. Steps append; nothing is taken back."""

    fabric: Fabric
    repairs: tuple[Repair, ...] = ()
    claims: list[DeviceClaim] = field(default_factory=list)
    """Claims that the fabric counts and that no step has spent."""
    spent: list[DeviceClaim] = field(default_factory=list)
    inherited: tuple[DeviceClaim, ...] = ()
    """Claims of pods to be created that take the place of spent ones."""
    blocked_request: GroupRequest | None = None
    actions: list[Action] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    """Seconds until something of this plan changes by time alone."""
    blocked: list[str] = field(default_factory=list)
    """What could not be placed, for the condition Placed."""
    progressing: ConditionState | None = None
    """Set by a step that waits for a person or for devices."""
    members: dict[int, tuple[str, tuple[PlacedInstance, ...]]] = field(default_factory=dict)
    """Revision and staying instances, those of this plan included, of each group that stays."""

    flips: dict[str, Role] = field(default_factory=dict)
    """The role to which this plan sends each instance that it makes flip."""

    def act(self, action: Action, reason: str) -> None:
        """Add an action and why."""
        self.actions.append(action)
        self.reasons.append(reason)

    def promise(self, reservations: Iterable[Reservation]) -> None:
        """Later steps of this plan see these devices taken."""
        self.fabric = self.fabric.reserve(reservations)

    def place(self, index: int, revision: str, members: Iterable[PlacedInstance]) -> None:
        """Count the instances that this plan makes among their group's."""
        _, known = self.members.get(index, (revision, ()))
        self.members[index] = (revision, (*known, *members))

    def beside(self, revision: str, index: int) -> tuple[Site, ...]:
        """Where the other groups of this revision are: those of another one will go."""
        return tuple(
            site_of(members)
            for other, (its, members) in sorted(self.members.items())
            if its == revision and other != index
        )

    def wait(self, seconds: float) -> None:
        """Plan again after so many seconds at the latest; negative counts as 0."""
        self.waits.append(max(0.0, seconds))


def members_of(group: GroupView) -> tuple[PlacedInstance, ...]:
    """Staying instances of the group's revision as placement wants them."""
    return tuple(
        PlacedInstance(i.name, i.role, i.nodes, i.name in group.routable)
        for role in ROLES
        for i in group.of_role(role)
    )


def closed_members(
    group: GroupView, observation: Observation, fabric: Fabric
) -> tuple[InstanceObs, ...]:
    """Staying instances of which a node is Ready and takes no new one: it may be about to be
    emptied.
    """
    then = observation.at(group.revision) or observation.wanted
    return tuple(
        i for i in group.staying if any(_is_closed(n, then.role(i.role), fabric) for n in i.nodes)
    )


def closed_nodes(
    instance: InstanceObs, observation: Observation, fabric: Fabric
) -> tuple[str, ...]:
    """Those nodes of an instance, by name, that are Ready and take no new one."""
    then = (observation.at(instance.revision) or observation.wanted).role(instance.role)
    return tuple(sorted({n for n in instance.nodes if _is_closed(n, then, fabric)}))


def _is_closed(node: str, then: RoleWanted, fabric: Fabric) -> bool:
    obstacle = fabric.blocked(node, then.tolerations)
    return obstacle is not None and obstacle.may_empty


def stood_in_for(group: GroupView, observation: Observation, fabric: Fabric) -> frozenset[str]:
    """Names of closed members whose stand-in is there: the two count as one."""
    replaced = {i.replaces for i in group.staying}
    closed = closed_members(group, observation, fabric)
    return frozenset(i.name for i in closed if i.uid in replaced)


def perhaps_lost(group: GroupView) -> frozenset[str]:
    """Names of members on silent nodes whose stand-in is there.

    The stand-in is what is left if the instance is lost, so it is no surplus; but as long as
    nothing is lost, nothing is made in its place.
    """
    replaced = {i.replaces for i in group.staying}
    return frozenset(i.name for i in group.staying if i.silent and i.uid in replaced)


def at_own_revision(group: GroupView, observation: Observation) -> Observation | None:
    """The observation by which this group is kept up; None: it is left as it is.

    An outdated group that has served gets lost instances back as they were, and no other change:
    its turn to be replaced comes. One without a template to do so serves while it can; when
    nothing of it is left, it is made anew.
    """
    if group.revision == observation.wanted.revision:
        return observation
    own = observation.at(group.revision)
    if own is None or not group.has_served:
        return None if group.staying else observation
    return replace(observation, wanted=replace(own, paused=True))
