"""Claims: the places of a ScenarioGroup that no pod holds, kept until they are given up.

Between the end of a pod and the start of its successor no pod holds its devices, nor its memory and
other amounts. Without a claim, a waiting group would take them from a serving one for good. Claims
are stored in ScenarioGroup status, and every placement counts them like pods.

A claim says what one pod took, and where. Which slot it is kept for may change (`ownership`). It
counts while its pod holds nothing. A placement spends the claims whose room it needs, and every pod
made in their place has a claim before it is created, so that each place is recorded exactly once at
every moment:

    what lost a pod                          may be placed with
    an instance of a group                   the claims of its role in the group, then of the group
    the rest of a group that is half made    the same, then what groups that are gone left
    a group                                  what its index left, then the group that is gone and
                                             left most, then all of them

A peer table that still names a pod would bring its place back after a restart. So until the table
has dropped it, claims of its slot are spent in that slot only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from pdserve.groups.instances import InstanceObs
from pdserve.groups.types import (
    CreateGroup,
    CreateInstance,
    DeviceClaim,
    NewPod,
    Observation,
    Plan,
    Wanted,
)
from pdserve.groups.view import GroupView, PlanDraft, leaving
from pdserve.placement import GroupRequest, InstancePlacement, NoFit, Placement, place
from pdserve.terms import Role
from pdserve.topology import Fabric, Reservation
from pdserve.topology.requests import is_extended
from pdserve.wire.names import member_name, slot_of
from pdserve.wire.peers import Peer, PeerTable

Found = TypeVar("Found", InstancePlacement, Placement)


def reservations(claims: Iterable[DeviceClaim]) -> tuple[Reservation, ...]:
    """What claims take of the fabric."""
    return tuple(Reservation(c.pod, c.node, r, n) for c in claims for r, n in c.takes)


def counted(observation: Observation) -> list[DeviceClaim]:
    """The claims whose pods hold nothing any more: those that the fabric counts."""
    holding = {m.pod for i in observation.instances for m in i.members if m.holds}
    return [c for c in observation.claims if c.pod not in holding]


# --- placing on claims -----------------------------------------------------------------------


def unsettled(observation: Observation) -> frozenset[str]:
    """Slots whose claims are spent in no other: a peer table names an instance that left there.

    After a restart that instance has left its place to them, unless its slot has another one.
    """
    stay = {i.name for i in observation.instances if not leaving(i)}
    named = (p.id for table in observation.tables.values() for p in table.instances)
    return frozenset(slot_of(name) for name in named if name not in stay)


def of_instance(
    group: GroupView, slot: str, role: Role, observation: Observation, draft: PlanDraft
) -> tuple[tuple[DeviceClaim, ...], ...]:
    """Claims to lift for one more instance of a group: of its role, then all of the group."""
    bound = unsettled(observation) - {slot}
    own = tuple(
        c for c in draft.claims if c.group_index == group.index and slot_of(c.pod) not in bound
    )
    same = tuple(c for c in own if c.role == role)
    return tuple(dict.fromkeys(x for x in (same, own) if x))


def of_gone_groups(present: Collection[int], draft: PlanDraft) -> tuple[DeviceClaim, ...]:
    """What groups left that are not there; `present` are the indexes of those that are."""
    return tuple(c for c in draft.claims if c.group_index not in present)


def of_fullest(claims: Iterable[DeviceClaim]) -> tuple[DeviceClaim, ...]:
    """Those of the group that left most of them."""
    known = tuple(claims)
    left = Counter(c.group_index for c in known)
    fullest = min(left, key=lambda index: (-left[index], index), default=None)
    return tuple(c for c in known if c.group_index == fullest)


def with_lifted(
    draft: PlanDraft,
    lifted: Sequence[DeviceClaim],
    own: Collection[DeviceClaim],
    find: Callable[[Fabric], Found | NoFit],
) -> Found | NoFit:
    """Look for a place with `lifted` claims lifted; on success those are spent whose room it needs.

    The others count again, and so does the rest of a larger one. Only `own` ones, those of what is
    placed, are broken up: of another's, each must go to one pod that takes as much, so that what is
    left in return is as large.
    """
    base = draft.fabric.release(reservations(lifted))
    found = find(base)
    if isinstance(found, NoFit):
        return found
    pods = _by_node(found.reservations)
    need: Counter[tuple[str, str]] = Counter()
    for r in found.reservations:
        need[r.node, r.resource] += r.devices
    for at, amount in need.items():
        need[at] = _beyond_free(draft.fabric, *at, amount)
    left: dict[DeviceClaim, DeviceClaim | None] = {}
    for claim in sorted(lifted, key=lambda c: (c not in own, c.slot, c.pod)):
        if any(need[claim.node, resource] > 0 for resource, _ in claim.takes):
            rest = _rest(claim, pods[claim.node], whole=claim not in own)
            if rest is None:
                return NoFit(f"{claim.pod} left more on {claim.node} than is needed")
            left[claim] = replace(claim, takes=tuple(rest.items())) if rest else None
            for resource, n in claim.takes:
                need[claim.node, resource] -= n - rest.get(resource, 0)
    draft.fabric = base.reserve(reservations(k for c in lifted if (k := left.get(c, c))))
    draft.claims = [k for c in draft.claims if (k := left.get(c, c))]
    draft.spent += [c for c, kept in left.items() if kept is None]
    return found


def _by_node(taken: Iterable[Reservation]) -> dict[str, list[Counter[str]]]:
    """What each pod takes, by node; members of one instance on one node have equal entries."""
    found: dict[str, dict[tuple[str, int], Counter[str]]] = {}
    before: Counter[Reservation] = Counter()
    for r in taken:
        pod = found.setdefault(r.node, {}).setdefault((r.pod, before[r]), Counter())
        pod[r.resource] += r.devices
        before[r] += 1
    return {node: list(pods.values()) for node, pods in found.items()}


def _rest(
    claim: DeviceClaim, pods: Sequence[Counter[str]], *, whole: bool
) -> dict[str, int] | None:
    """What is left of a claim when pods on its node have used it; `pods` then lack that much less.

    Nothing where no devices are left. `whole`: None where no pod alone takes all of it.
    """
    rest = dict(claim.takes)
    large = [p for p in pods if all(p.get(r, n) >= n for r, n in claim.takes)]
    if whole and not large:
        return None
    for pod in large[:1] or pods:
        for resource, n in rest.items():
            used = min(n, pod.get(resource, n))
            rest[resource] -= used
            if resource in pod:
                pod[resource] -= used
    left = {resource: n for resource, n in rest.items() if n}
    return left if any(map(is_extended, left)) else {}


def rename(draft: PlanDraft) -> None:
    """Keep claims that have the names of instances to be created under those of spent ones.

    A name comes again where its pod was never created, or ended unseen. Where no other name is
    left, the claim is given up: fewer were spent than are created.
    """
    new = (a for a in draft.actions if isinstance(a, CreateGroup | CreateInstance))
    names = {pod.instance for a in new for pod in a.pods}
    unused = [c for c in draft.spent if c.instance not in names]
    for claim in [c for c in draft.claims if c.instance in names]:
        at = draft.claims.index(claim)
        if unused:
            other = unused.pop(0)
            draft.spent.remove(other)
            draft.claims[at] = replace(claim, pod=other.pod, uid=other.uid)
        else:
            del draft.claims[at]
            draft.fabric = draft.fabric.release(reservations([claim]))


def _beyond_free(fabric: Fabric, node: str, resource: str, amount: int) -> int:
    """How much of this amount is not free."""
    extended = is_extended(resource)
    free = fabric.free(node, resource) if extended else fabric.left(node, resource)
    return 0 if free is None else amount - free


def after_those_ahead(fabric: Fabric, observation: Observation) -> Fabric:
    """The fabric as it is left by waiting groups that come first (priority, then age).

    One that does not fit now takes nothing: those that fit go on. What did not fit fits no better
    once more is taken, so equal ones are looked for once.
    """
    unfit: set[GroupRequest] = set()
    for request in observation.ahead:
        if request in unfit:
            continue
        found = place(fabric, request)
        if isinstance(found, Placement):
            fabric = fabric.reserve(found.reservations)
        else:
            unfit.add(request)
    return fabric


# --- recording -------------------------------------------------------------------------------


def must_be_recorded_first(planned: Plan, recorded: Iterable[DeviceClaim]) -> bool:
    """Whether status has to name the plan's claims before the plan is carried out.

    So it is where they hold anything that status (`recorded`) does not say: the place of a pod that
    the plan takes away, or of one to be created in the place of another.
    """
    return bool(set(planned.claims) - set(recorded))


def newest(known: Iterable[DeviceClaim], seen: Iterable[DeviceClaim]) -> list[DeviceClaim]:
    """All claims, each pod's once: as it is known, unless another pod of that name was seen."""
    found = {c.pod: c for c in known}
    for claim in seen:
        before = found.get(claim.pod)
        if before is None or claim.uid not in (before.uid, claim.instance):
            # A table names no uid: its entry of a pod is never newer.
            found[claim.pod] = claim
    return list(found.values())


def claim_of_new(pod: NewPod, wanted: Wanted) -> DeviceClaim:
    """The claim of a pod to be created; its uid is that of the instance replaced, or empty."""
    return DeviceClaim(
        pod.name, pod.replaces or "", pod.slot, pod.role, pod.group_index, pod.node,
        wanted.role(pod.role).takes,
    )  # fmt: skip


def claims_for(instance: InstanceObs) -> tuple[DeviceClaim, ...]:
    """The claims that an instance leaves behind; none for a member that was refused its devices."""
    return tuple(
        DeviceClaim(
            m.pod, instance.uid, instance.slot, instance.role, instance.group_index, m.node,
            m.claimed,
        )
        for m in instance.members
        if m.claimed and m.node and m.fault != "Unschedulable"
    )  # fmt: skip


Takes = Callable[[str, Role], tuple[tuple[str, int], ...]]
"""Revision, role -> what one pod takes, ordered by resource."""


def recalled(
    recorded: Collection[DeviceClaim],
    tables: Mapping[int, PeerTable],
    instances: Sequence[InstanceObs],
    takes: Takes,
) -> dict[str, DeviceClaim]:
    """After a start, by pod: what instances left that a table names and that are gone, or ended.

    `recorded` are the claims in status, which are not found again. An operator before has decided
    on what no table names. So it has on one whose slot has another instance by now, or another's
    claim: its place was used.
    """
    by_name = {i.name: i for i in instances}
    later = [(i.group_index, i.slot, i.name) for i in instances if not leaving(i)]
    later += [(c.group_index, c.slot, c.instance) for c in recorded]
    taken: dict[tuple[int, str], set[str]] = {}
    for index, slot, name in later:
        taken.setdefault((index, slot), set()).add(name)
    known = {c.pod for c in recorded}
    found: dict[str, DeviceClaim] = {}
    for index, table in tables.items():
        for peer in table.instances:
            if taken.get((index, slot_of(peer.id)), set()) - {peer.id}:
                continue
            instance = by_name.get(peer.id)
            if instance is not None and instance.drain_started is not None:
                continue
            seen = [] if instance is None else claims_for(instance)
            holding = {m.pod for m in instance.members if m.holds} if instance else set[str]()
            left = newest(_of_peer(peer, index, takes(peer.revision, peer.role)), seen)
            found.update((c.pod, c) for c in left if c.pod not in holding | known)
    return found


def with_room(found: Mapping[str, DeviceClaim], fabric: Fabric) -> dict[str, DeviceClaim]:
    """Those of recalled claims, by pod, that nothing else has: their places were not given up.

    `fabric` counts pods and the claims in status. What a node took back, as its devices are not
    well, is no loss.
    """
    kept: dict[str, DeviceClaim] = {}
    for pod, claim in sorted(found.items()):
        view = fabric.nodes.get(claim.node)
        if view is not None:
            for resource, n in claim.takes:
                left = fabric.left(claim.node, resource)
                have = view.allocatable.get(resource, 0)
                taken_back = max(0, view.capacity.get(resource, have) - have)
                if left is not None and left + taken_back < n:
                    break
            else:
                kept[pod] = claim
                fabric = fabric.reserve(reservations([claim]))
    return kept


def _of_peer(peer: Peer, index: int, takes: tuple[tuple[str, int], ...]) -> list[DeviceClaim]:
    """What the members of an instance have, as its peer table tells it."""
    return [
        DeviceClaim(
            member_name(peer.id, k), peer.id, slot_of(peer.id), peer.role, index, node.name, takes
        )
        for k, node in enumerate(peer.nodes)
    ]
