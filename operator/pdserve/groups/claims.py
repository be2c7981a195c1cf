"""Claims: devices that an instance held, kept for its P/D group until it is replaced or given up.

Between the end of a pod and the start of its successor nobody holds its devices; without a claim a
waiting group takes them from a serving one for good. Claims live in ScenarioGroup status, and
everybody's placement counts them like pods. A claim ends when its slot is filled again, wherever;
when the group is resized or given up; and when its node left the fabric.

    a claim's pod still holds its devices    the pod counts, not the claim
    an instance of the group is placed       with the claims of its role, else of its group, lifted
    a group is made anew (delete first)      with the claims of one group that is gone lifted
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from pdserve.groups.types import (
    Claim,
    CreateGroup,
    CreateInstance,
    InstanceObs,
    Observation,
)
from pdserve.groups.view import Draft, GroupView, leaving, stood_in_for
from pdserve.placement import NoFit, Placement, place
from pdserve.topology import Fabric, Reservation
from pdserve.wire.peers import ROLES, Role

T = TypeVar("T")


def reservations(claims: Iterable[Claim]) -> tuple[Reservation, ...]:
    """What claims take of the fabric."""
    return tuple(Reservation(c.pod, c.node, c.resource, c.devices) for c in claims)


def counted(observation: Observation) -> list[Claim]:
    """The claims whose pods hold nothing any more: those that the fabric counts."""
    holding = {i.name for i in observation.instances if i.holds}
    return [c for c in observation.claims if c.pod not in holding]


def of_instance(group: GroupView, draft: Draft, role: Role) -> tuple[tuple[Claim, ...], ...]:
    """Claims to lift for one more instance of a group: of its role, then all of the group."""
    own = tuple(c for c in draft.claims if c.group_index == group.index)
    same = tuple(c for c in own if c.role == role)
    return tuple(dict.fromkeys(x for x in (same, own) if x))


def of_gone_group(live: Iterable[GroupView], draft: Draft) -> tuple[Claim, ...]:
    """Claims to lift for a new group: those of one group that is not there any more."""
    present = {g.index for g in live}
    gone = sorted({c.group_index for c in draft.claims} - present)
    return tuple(c for c in draft.claims if gone and c.group_index == gone[0])


def with_lifted(
    draft: Draft, lifted: Sequence[Claim], find: Callable[[Fabric], T | NoFit], one: bool = False
) -> T | NoFit:
    """Look for a place with `lifted` claims lifted; on success they are spent (`one`: only one).

    Claims that are not spent are counted again.
    """
    base = draft.fabric.release(reservations(lifted))
    found = find(base)
    if isinstance(found, NoFit):
        return found
    spent = tuple(lifted[:1] if one else lifted)
    draft.claims = [c for c in draft.claims if c not in spent]
    draft.spent += spent
    draft.fabric = base.reserve(reservations(c for c in lifted if c not in spent))
    return found


def after_those_ahead(fabric: Fabric, observation: Observation) -> Fabric:
    """The fabric as it is left by waiting groups that come first (priority, then age).

    One that does not fit now takes nothing: whoever fits goes on.
    """
    for request in observation.ahead:
        found = place(fabric, request)
        if isinstance(found, Placement):
            fabric = fabric.reserve(found.reservations)
    return fabric


def kept_claims(
    groups: Sequence[GroupView], kept: Sequence[GroupView], observation: Observation, draft: Draft
) -> tuple[Claim, ...]:
    """The claims after this plan, by group and slot.

    Phases: 1 groups that stay: as many as instances are missing; 2 groups to be made anew: all
    of as many groups that are gone and left something that no step has spent.
    """
    held = {c.pod: c for c in observation.claims}
    spent = {c.pod for c in draft.spent}
    found: list[Claim] = []
    made = Counter(
        (a.pod.group_index, a.pod.role)
        for a in draft.actions
        if isinstance(a, CreateInstance) and not a.stands_in
    )
    # 1
    staying = {g.index for g in kept}
    for group in kept:
        wanted = observation.at(group.revision) or observation.wanted
        known = [c for c in held.values() if c.group_index == group.index]
        left = _usable([*known, *(claim_of(i) for i in group.members if leaving(i))], spent, draft)
        short = 0
        covered = stood_in_for(group, observation, draft.fabric)
        for role in ROLES:
            here = sum(1 for i in group.of_role(role) if i.name not in covered)
            missing = wanted.role(role).count - here - made[group.index, role]
            mine = [c for c in left if c.role == role][: max(0, missing)]
            found += mine
            short += max(0, missing) - len(mine)
            left = [c for c in left if c not in mine]
        # A substitute that took another role's devices leaves its own to that role.
        found += left[:short]
    # 2
    anew = observation.wanted.replicas - len(kept)
    anew -= sum(isinstance(a, CreateGroup) for a in draft.actions)
    former: dict[int, list[Claim | None]] = {}
    for claim in held.values():
        if claim.group_index not in staying:
            former.setdefault(claim.group_index, []).append(claim)
    for group in groups:
        if group.index not in staying:
            former.setdefault(group.index, []).extend(claim_of(i) for i in group.members)
    left_by = (_usable(former[index], spent, draft) for index in sorted(former))
    for usable in [claims for claims in left_by if claims][: max(0, anew)]:
        for role in ROLES:
            mine = [c for c in usable if c.role == role]
            found += mine[: observation.wanted.role(role).count]
    return tuple(sorted(found, key=lambda c: (c.group_index, c.slot, c.pod)))


def merged(first: tuple[Claim, ...], more: tuple[Claim, ...]) -> tuple[Claim, ...]:
    """Both, each pod's claim once, by group and slot."""
    found = {c.pod: c for c in (*more, *first)}
    return tuple(sorted(found.values(), key=lambda c: (c.group_index, c.slot, c.pod)))


def claim_of(instance: InstanceObs) -> Claim | None:
    """The claim that an instance leaves behind; None for one that was refused its devices."""
    if instance.claimed is None or not instance.node or instance.fault == "Unschedulable":
        return None
    resource, devices = instance.claimed
    return Claim(
        instance.name, instance.uid, instance.slot, instance.role, instance.group_index,
        instance.node, resource, devices,
    )  # fmt: skip


def _usable(found: Iterable[Claim | None], spent: set[str], draft: Draft) -> list[Claim]:
    """Each pod's claim once, each slot's newest only, none on a node that is gone."""
    slots: dict[str, Claim] = {}
    for claim in found:
        if claim is not None and claim.pod not in spent and claim.node in draft.fabric.nodes:
            slots[claim.slot] = claim
    return [slots[slot] for slot in sorted(slots)]
