"""Claims: the resources of an instance, kept for its P/D group until it is replaced or given up.

Between the end of a pod and the start of its successor no pod holds its devices, nor its memory and
other amounts. Without a claim, a waiting group would take them from a serving one for good. Claims
are stored in ScenarioGroup status, and every placement counts them like pods. A claim ends when its
slot is filled again, on any node; when the group is resized or given up; and when its node left the
fabric. Which claims count:

    a claim is spent by a new pod            that pod has one until a peer table names it
    a claim's pod still holds its devices    the pod counts, not the claim
    an instance of the group is placed       with the claims of its role, else of its group, lifted
    a group is made anew (delete first)      with its index's claims lifted, else those of the group
                                             that is gone and left most; the two change places
    the rest of one that is half made        the same, as the claims were counted for all of it

Each member of an instance leaves a claim; those of one instance are kept, and spent, together.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from pdserve.groups.instances import InstanceObs
from pdserve.groups.naming import slot_range
from pdserve.groups.types import (
    CreateGroup,
    CreateInstance,
    DeviceClaim,
    NewPod,
    Observation,
    Plan,
    Wanted,
)
from pdserve.groups.view import GroupView, PlanDraft, leaving, stood_in_for
from pdserve.placement import GroupRequest, InstancePlacement, NoFit, Placement, place
from pdserve.terms import ROLES, Role
from pdserve.topology import Fabric, Reservation


def reservations(claims: Iterable[DeviceClaim]) -> tuple[Reservation, ...]:
    """What claims take of the fabric."""
    return tuple(Reservation(c.pod, c.node, r, n) for c in claims for r, n in c.takes)


def counted(observation: Observation) -> list[DeviceClaim]:
    """The claims whose pods hold nothing any more: those that the fabric counts."""
    holding = {m.pod for i in observation.instances for m in i.members if m.holds}
    return [c for c in observation.claims if c.pod not in holding]


def of_instance(
    group: GroupView, draft: PlanDraft, role: Role
) -> tuple[tuple[DeviceClaim, ...], ...]:
    """Claims to lift for one more instance of a group: of its role, then all of the group."""
    own = tuple(c for c in draft.claims if c.group_index == group.index)
    same = tuple(c for c in own if c.role == role)
    return tuple(dict.fromkeys(x for x in (same, own) if x))


def of_gone_group(present: Collection[int], draft: PlanDraft) -> tuple[DeviceClaim, ...]:
    """Claims to lift for a new group: of the group that left most of those that are not there.

    `present` are the indexes of groups that are.
    """
    left = Counter(c.group_index for c in draft.claims if c.group_index not in present)
    fullest = min(left, key=lambda index: (-left[index], index), default=None)
    return tuple(c for c in draft.claims if c.group_index == fullest)


def with_lifted(
    draft: PlanDraft,
    index: int,
    lifted: Sequence[DeviceClaim],
    find: Callable[[Fabric], Placement | NoFit],
) -> Placement | NoFit:
    """Look for a place of group `index` with `lifted` claims lifted; on success they are spent.

    What that index left and the new group does not use is kept for the group whose claims it uses.
    """
    base = draft.fabric.release(reservations(lifted))
    found = find(base)
    if isinstance(found, NoFit):
        return found
    own = [c for c in draft.claims if c.group_index == index and c not in lifted]
    spent, kept = _instead_of(own, list(lifted))
    draft.claims = [c for c in draft.claims if c not in lifted and c not in own] + kept
    draft.spent += tuple(spent)
    draft.fabric = base.release(reservations(own)).reserve(reservations(kept))
    return found


def _instead_of(
    own: Sequence[DeviceClaim], lifted: list[DeviceClaim]
) -> tuple[list[DeviceClaim], list[DeviceClaim]]:
    """Spend `own` at the places of as many `lifted` ones, of the same role where there are.

    Returns: the claims to be spent, with those lifted that are left over, and those to be kept:
    lifted ones, at the places of `own`. There are no more `own` than `lifted`.
    """
    left = sorted(lifted, key=lambda c: (c.role, c.slot, c.pod))
    spent: list[DeviceClaim] = []
    kept: list[DeviceClaim] = []
    for claim in sorted(own, key=lambda c: (c.role, c.slot, c.pod)):
        other = next((c for c in left if c.role == claim.role), left[0])
        left.remove(other)
        spent.append(_at_place_of(claim, other))
        kept.append(_at_place_of(other, claim))
    return spent + left, kept


def with_one_lifted(
    draft: PlanDraft,
    lifted: Sequence[DeviceClaim],
    find: Callable[[Fabric], InstancePlacement | NoFit],
) -> InstancePlacement | NoFit:
    """Look for a place of one instance with `lifted` claims lifted.

    On success the claims of the first one's instance are spent. Where the place is another one's,
    the two change places first: each group has the devices that it had, and each slot its claims.
    The others are counted again.
    """
    base = draft.fabric.release(reservations(lifted))
    found = find(base)
    if isinstance(found, NoFit):
        return found
    mine = [c for c in lifted if c.instance == lifted[0].instance]
    others = [c for c in lifted if c not in mine]
    _exchange(mine, others, found.nodes)
    draft.claims = [c for c in draft.claims if c not in lifted] + others
    draft.spent += tuple(mine)
    draft.fabric = base.reserve(reservations(others))
    return found


def _exchange(mine: list[DeviceClaim], others: list[DeviceClaim], nodes: Sequence[str]) -> None:
    """Let claims change places, so that `mine` has those on `nodes`."""
    taken = list(nodes)
    away: list[int] = []
    for k, claim in enumerate(mine):
        if claim.node in taken:
            taken.remove(claim.node)
        else:
            away.append(k)
    for k in away:
        at = next((n for n, other in enumerate(others) if other.node in taken), None)
        if at is None:
            return
        taken.remove(others[at].node)
        mine[k], others[at] = _at_place_of(mine[k], others[at]), _at_place_of(others[at], mine[k])


def _at_place_of(claim: DeviceClaim, other: DeviceClaim) -> DeviceClaim:
    return replace(claim, node=other.node, takes=other.takes)


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


def kept_claims(
    groups: Sequence[GroupView],
    kept: Sequence[GroupView],
    observation: Observation,
    draft: PlanDraft,
) -> tuple[DeviceClaim, ...]:
    """The claims after this plan, by group and slot, those of one slot by age.

    Every plan keeps the same one of two claims of a slot: the newer. Phases: 1 groups that stay: as
    many as instances are missing; 2 groups to be made anew: all of as many groups that are gone,
    those first that left most that no step has spent, and what they lack of the claims that groups
    that stay need no more: those were made on the others'.
    """
    held = {c.pod: c for c in (*observation.claims, *draft.claims)}
    spent = {c.pod for c in draft.spent}
    found: list[DeviceClaim] = []
    surplus: list[DeviceClaim] = []
    new_pods = (a.pod for a in draft.actions if isinstance(a, CreateInstance) and not a.stands_in)
    made = Counter((pod.group_index, pod.role) for pod in new_pods)
    # 1
    staying = {g.index for g in kept}
    for group in kept:
        wanted = observation.at(group.revision) or observation.wanted
        left = newest(held.values(), _left_by(group.members))
        usable = _usable([c for c in left if c.group_index == group.index], spent, draft)
        covered = stood_in_for(group, observation, draft.fabric)
        missing: dict[Role, int] = {}
        for role in ROLES:
            here = sum(1 for i in group.of_role(role) if i.name not in covered)
            missing[role] = wanted.role(role).count - here - made[group.index, role]
        filled = {i.slot for i in group.staying}
        new = _of_newcomers(group, held.values())
        found += new.values()
        usable = [c for c in usable if c.pod not in new]
        own = _kept(sorted(usable, key=lambda c: c.slot in filled), missing)
        found += own
        standing = {i.name for i in group.staying}
        left_over = [c for c in usable if c not in own and c.instance not in standing]
        sizes = Counter(c.instance for c in left_over)
        # Of an instance of which a member's claim is gone the rest is of no use to another group.
        surplus += [c for c in left_over if sizes[c.instance] == wanted.role(c.role).members]
    # 2
    anew = observation.wanted.replicas - len(kept)
    anew -= sum(isinstance(a, CreateGroup) for a in draft.actions)
    former = _former(held.values(), [g for g in groups if g.index not in staying], staying)
    counts = {role: observation.wanted.role(role).count for role in ROLES}
    left_by = (_kept(_usable(former[index], spent, draft), counts) for index in sorted(former))
    # A group that was rolled twice left two: what remains of the older one is not enough.
    fullest = sorted(filter(None, left_by), key=len, reverse=True)[: max(0, anew)]
    named = {c.pod for left in former.values() for c in left}
    surplus = [c for c in surplus if c.pod not in named]
    free = (k for k in itertools.count() if k not in staying and k not in former)
    for left in (*fullest, *([] for _ in range(anew - len(fullest)))):
        index = left[0].group_index if left else next(free)
        found += left + _filled_up(left, index, surplus, observation.wanted)
    found += draft.inherited
    return _in_order(found, held, groups)


def _of_newcomers(group: GroupView, held: Iterable[DeviceClaim]) -> dict[str, DeviceClaim]:
    """The claims of members that no peer table names yet, by pod.

    No other record names one that vanishes unseen: neither a table nor, after a start, memory.
    """
    new = [i for i in group.staying if not group.named(i)]
    names = {i.name for i in new}
    known = (c for c in held if c.group_index == group.index and c.instance in names)
    return {c.pod: c for c in newest(known, (c for i in new for c in claims_for(i)))}


def _in_order(
    found: Iterable[DeviceClaim], held: Iterable[str], groups: Iterable[GroupView]
) -> tuple[DeviceClaim, ...]:
    """By group and slot, those of one slot in the order in which they became known.

    First the pods of `held` claims, then those of members, the oldest first.
    """
    seen = _left_by((i for g in groups for i in g.members), all_of_them=True)
    age = {pod: n for n, pod in enumerate(dict.fromkeys([*held, *(c.pod for c in seen)]))}
    return tuple(
        sorted(found, key=lambda c: (c.group_index, c.slot, age.get(c.pod, len(age)), c.pod))
    )


def _kept(usable: Sequence[DeviceClaim], missing: Mapping[Role, int]) -> list[DeviceClaim]:
    """Those of as many instances as are missing, of their role where there are, the first first.

    A substitute that took another role's devices leaves its own to that role.
    """
    left: dict[str, list[DeviceClaim]] = {}
    for claim in usable:
        left.setdefault(claim.instance, []).append(claim)
    found: list[str] = []
    for role in ROLES:
        found += [name for name in left if left[name][0].role == role][: max(0, missing[role])]
    wanted = sum(max(0, count) for count in missing.values())
    found += [name for name in left if name not in found][: wanted - len(found)]
    return [claim for name in found for claim in left[name]]


def _former(
    held: Iterable[DeviceClaim], going: Iterable[GroupView], staying: Collection[int]
) -> dict[int, list[DeviceClaim]]:
    """What groups that do not stay left, and what those that are `going` will leave, by index."""
    members = [i for g in going for i in g.members]
    found: dict[int, list[DeviceClaim]] = {}
    for claim in newest(held, _left_by(members, all_of_them=True)):
        if claim.group_index not in staying:
            found.setdefault(claim.group_index, []).append(claim)
    return found


def _filled_up(
    left: Sequence[DeviceClaim], index: int, surplus: list[DeviceClaim], wanted: Wanted
) -> list[DeviceClaim]:
    """What group `index` lacks beside its claims `left`: of `surplus`, which loses it.

    Claims of the same role where there are, as in `_kept`.
    """
    empty = {
        role: [
            slot for slot in slot_range(wanted, index, role)
            if slot not in {c.slot for c in left}
        ]
        for role in ROLES
    }  # fmt: skip
    found: list[DeviceClaim] = []
    for alike in (True, False):
        for role in ROLES:
            names = dict.fromkeys(c.instance for c in surplus if not alike or c.role == role)
            for slot, name in zip(list(empty[role]), names, strict=False):
                empty[role].remove(slot)
                found += [
                    replace(c, group_index=index, slot=slot) for c in surplus if c.instance == name
                ]
                surplus[:] = [c for c in surplus if c.instance != name]
    return found


def _left_by(members: Iterable[InstanceObs], *, all_of_them: bool = False) -> list[DeviceClaim]:
    """What members leave behind that are on their way out, or all of them; the oldest first."""
    out = (i for i in members if all_of_them or leaving(i))
    return [c for i in sorted(out, key=lambda i: (i.created, i.name)) for c in claims_for(i)]


def merged(
    first: tuple[DeviceClaim, ...], more: tuple[DeviceClaim, ...]
) -> tuple[DeviceClaim, ...]:
    """Both, each pod's claim once, by group and slot."""
    found = {c.pod: c for c in (*more, *first)}
    return tuple(sorted(found.values(), key=lambda c: (c.group_index, c.slot, c.pod)))


def must_be_recorded_first(planned: Plan, recorded: Iterable[DeviceClaim]) -> bool:
    """Whether status has to name the plan's claims before the plan is carried out.

    So it is where the plan frees devices, or takes the place of a claim that status (`recorded`)
    does not name. A new pod's own claim waits: until it is written, the one whose place it takes
    stands, which also holds when the pod is refused. Each refusal would else change status twice.
    """
    named = set(recorded)
    new = set(planned.claims) - set(planned.inherited) - named
    return bool(new or set(planned.spent) - named)


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


def _usable(found: Iterable[DeviceClaim], spent: set[str], draft: PlanDraft) -> list[DeviceClaim]:
    """Those not spent and on nodes that are there: each slot's newest by slot, then older ones.

    A slot has two while both of its pods hold devices: the older one fails, and its successor was
    given those of another lost instance. A table may also name one whose devices the successor
    has: so the older ones come last.
    """
    usable = [c for c in found if c.pod not in spent and c.node in draft.fabric.nodes]
    last = {c.slot: c.instance for c in usable}
    return sorted(usable, key=lambda c: (last[c.slot] != c.instance, c.slot, c.pod))
