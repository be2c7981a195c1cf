"""Changes inside a group that stays: adds missing instances, gives up those that are too many.

A missing instance is growth or a substitution. One fault makes one new pod; nothing else of the
group is touched.

Ratio changes grow first and shrink when the growth is ready, so neither role falls below the wanted
count. Where growth finds no devices, it shrinks first ("release some instances of groups and add
them to others", P/D-Serve 3.3). Ready instances are only given up above one per role.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pdserve.groups.claims import (
    claim_of_new,
    counted,
    of_gone_groups,
    of_instance,
    rename,
    unsettled,
    with_lifted,
)
from pdserve.groups.creation import placed
from pdserve.groups.ending import leave_ending
from pdserve.groups.flip import from_flips, start_flips
from pdserve.groups.instances import InstanceObs
from pdserve.groups.naming import free_slots, is_slot_of, new_pods, pod_name
from pdserve.groups.removal import retire
from pdserve.groups.repairs import waits_until
from pdserve.groups.search import InstanceSearch
from pdserve.groups.types import CreateInstance, NewPod, Observation
from pdserve.groups.view import (
    GroupView,
    PlanDraft,
    at_own_revision,
    members_of,
    perhaps_lost,
    stood_in_for,
)
from pdserve.placement import (
    InstancePlacement,
    NoFit,
    PlacedInstance,
    choose_removal,
)
from pdserve.terms import ROLES, Role
from pdserve.topology import Fabric, Path
from pdserve.wire.names import slot_of


@dataclass(frozen=True, slots=True)
class Vacancy:
    """A slot to fill: the pod that it replaces, by uid (None: it is growth), and where it was."""

    slot: str
    replaces: str | None
    near: Path | None
    reason: str


def resize_group(group: GroupView, observation: Observation, draft: PlanDraft) -> int:
    """Bring one group of the wanted revision to the wanted counts; repair one of another.

    Spares come later (`spare_places`). Returns for how many instances there was no place.
    """
    own, paused = at_own_revision(group, observation), observation.wanted.paused
    leave_ending(group, observation, draft)
    for instance in group.staying:
        if instance.revision != group.revision:
            why = f"it is of revision {instance.revision}, its group is not"
            retire(group, instance, why, observation, draft)
    if own is None:
        return 0
    observation, wanted = own, own.wanted
    unplaced = 0
    start_flips(group, observation, draft)
    for role in ROLES:
        short = wanted.role(role).count - _standing(group, role, observation, draft)
        for found in fill_vacancies(group, role, short, observation, draft):
            unplaced += 1
            draft.blocked.append(f"group {group.index}: {found.message}")
    if unplaced and _never_served(group) and not _awaits_devices(group, observation):
        for instance in group.members:
            why = "its group cannot be completed: no devices for the rest"
            retire(group, instance, why, observation, draft)
        return unplaced
    if not wanted.paused:
        _shrink(group, observation, draft, growth_blocked=unplaced > 0)
    elif not paused:
        _end_stand_ins(group, observation, draft)
    return unplaced


def lacks_spares(group: GroupView, observation: Observation, draft: PlanDraft) -> int:
    """How many spares are to be made in a group that has all other instances."""
    kept = observation.wanted.kept("decode")
    return kept - _standing(group, "decode", observation, draft)


def fill_vacancies(
    group: GroupView, role: Role, short: int, observation: Observation, draft: PlanDraft
) -> list[NoFit]:
    """Create so many instances; those that found no place."""
    refused = []
    for vacancy in _vacancies(group, role, short, observation, draft):
        _, members = draft.members[group.index]
        found = _fill(group, role, vacancy, members, observation, draft)
        if isinstance(found, NoFit):
            refused.append(found)
    return refused


def _standing(group: GroupView, role: Role, observation: Observation, draft: PlanDraft) -> int:
    """Instances of one role that are there, are made by this plan, or come by a flip."""
    covered = stood_in_for(group, observation, draft.fabric)
    to = draft.flips
    here = [i for i in group.of_role(role) if i.name not in covered and i.name not in to]
    came = sum(to.get(i.name) == role for i in group.staying)
    made = sum(pod.role == role for pod in _made(group, draft))
    return len(here) + came + made + from_flips(group, role, observation.wanted)


def _made(group: GroupView, draft: PlanDraft) -> list[NewPod]:
    """The leaders' pods that this plan creates in a group that is there."""
    made = (a.pod for a in draft.actions if isinstance(a, CreateInstance))
    return [pod for pod in made if pod.group_index == group.index]


def _vacancies(
    group: GroupView, role: Role, short: int, observation: Observation, draft: PlanDraft
) -> tuple[Vacancy, ...]:
    """Slots to fill, at most `short`: lost ones by slot, then free ones for growth."""
    if short <= 0:
        return ()
    wanted = observation.wanted
    made = {pod.slot for pod in _made(group, draft)}
    lost = _lost_slots(group, role, observation, draft)
    found = [lost[slot] for slot in sorted(lost) if slot not in made][:short]
    taken = {i.slot for i in group.members} | set(lost) | made
    growth = free_slots(wanted, group.index, role, taken, short - len(found))
    found += [Vacancy(slot, None, None, f"{role} grows") for slot in growth]
    if wanted.paused:
        # Devices that the group was left stand for instances it had, even where no record names
        # them.
        had = sum(c.group_index == group.index for c in draft.claims)
        lost_ones = [v for v in found if v.replaces is not None]
        found = lost_ones + [v for v in found if v.replaces is None][:had]
    return tuple(found)


def _lost_slots(
    group: GroupView, role: Role, observation: Observation, draft: PlanDraft
) -> dict[str, Vacancy]:
    """Slots whose last pod was lost and that are empty now.

    The predecessor is the newest lost pod of the slot; the repair record knows it when it is
    already gone from the cluster.
    """
    wanted = observation.wanted
    held = {i.slot for i in group.staying}
    present = {i.slot for i in group.members}
    succeeded = {i.replaces for i in group.members}
    lost: dict[str, Vacancy] = {}
    for instance in sorted(group.members, key=lambda i: (i.created, i.name)):
        if instance.role == role and _lost(instance) and instance.uid not in succeeded:
            near = _leaf_of(draft.fabric, instance)
            why = f"replaces {instance.name}: {instance.fault or 'deleted from outside'}"
            lost[instance.slot] = Vacancy(instance.slot, instance.uid, near, why)
    for repair in draft.repairs:
        ours = is_slot_of(repair.slot, wanted, group.index, role)
        if repair.slot in present or not ours:
            continue
        why = f"its last pod was lost: {repair.fault}"
        lost[repair.slot] = Vacancy(repair.slot, repair.last_uid, None, why)
    for claim in observation.claims:
        if (claim.group_index, claim.role) != (group.index, role) or claim.slot in present:
            continue
        near = draft.fabric.leaf(claim.node)
        why = f"its last pod {claim.pod} is gone"
        # One that was in another slot is replaced there.
        former = claim.uid if slot_of(claim.instance) == claim.slot else ""
        lost.setdefault(claim.slot, Vacancy(claim.slot, former or None, near, why))
    return {slot: vacancy for slot, vacancy in lost.items() if slot not in held}


def _lost(instance: InstanceObs) -> bool:
    """Lost without a plan: faulty, or deleted from outside."""
    if instance.drain_started is not None:
        return False
    return instance.fault is not None or instance.terminating


def _fill(
    group: GroupView,
    role: Role,
    vacancy: Vacancy,
    members: Sequence[PlacedInstance],
    observation: Observation,
    draft: PlanDraft,
) -> PlacedInstance | NoFit | None:
    """Create the instance; None while back-off runs."""
    wanted, now = observation.wanted, observation.now
    repair = next((r for r in draft.repairs if r.slot == vacancy.slot), None)
    due = now if repair is None else waits_until(repair, observation.bettered, draft.fabric)
    if repair is not None and now < due:
        draft.wait(due - now)
        draft.reasons.append(
            f"{vacancy.slot} failed {repair.failures} times: next try in {due - now:.0f} s"
        )
        return None
    name = pod_name(vacancy.slot, wanted.revision, vacancy.replaces)
    if group.table is not None and group.table.peer(name) is not None:
        # One id must never mean two pods: peers first learn that its former holder is gone.
        draft.reasons.append(f"{name} waits until the peer table has dropped its former holder")
        return None
    before = list(draft.claims)
    found = _find_node(group, role, vacancy, members, observation, draft)
    if isinstance(found, NoFit):
        draft.reasons.append(f"{vacancy.slot} stays empty: {found.message}")
        return found
    pods = new_pods(
        vacancy.slot, role, group.index, wanted.revision, found.nodes, draft.fabric,
        vacancy.replaces,
    )  # fmt: skip
    where = ", ".join(dict.fromkeys(found.nodes))
    draft.act(
        CreateInstance(pods, vacancy.reason),
        f"create {name} on {where} ({vacancy.reason}): {found.explanation[0]}",
    )
    rename(draft)
    draft.promise(found.reservations)
    if draft.claims != before:
        draft.inherited += tuple(claim_of_new(pod, wanted) for pod in pods)
    (made,) = placed(pods)
    draft.place(group.index, wanted.revision, [made])
    return made


def _find_node(
    group: GroupView,
    role: Role,
    vacancy: Vacancy,
    members: Sequence[PlacedInstance],
    observation: Observation,
    draft: PlanDraft,
) -> InstancePlacement | NoFit:
    """A node: with what the group's lost instances left; growth takes only what others leave.

    A group of which a part is made is made whole before those that wait: its devices were free
    for it, and a failed POST must not undo the rest.
    """
    search = InstanceSearch(group, role, vacancy.near, members, observation, draft)
    half_made = _never_served(group)
    lifts = of_instance(group, vacancy.slot, role, observation, draft)
    if half_made:
        bound = unsettled(observation)
        pool = of_gone_groups(draft.members, draft)
        lifts += (tuple(c for c in pool if slot_of(c.pod) not in bound),)
    for lifted in filter(None, lifts):
        own = [c for c in lifted if c.slot == vacancy.slot]
        found = with_lifted(draft, lifted, own, search.on)
        if not isinstance(found, NoFit):
            return found
    if vacancy.replaces is not None or half_made:
        return search.on(draft.fabric)
    return search.spare()


def _shrink(
    group: GroupView,
    observation: Observation,
    draft: PlanDraft,
    growth_blocked: bool,
) -> None:
    wanted = observation.wanted
    grown = all(group.ready(role) >= wanted.role(role).count for role in ROLES)
    # Two of one slot count as one: the drain that its stand-in is for ends the other.
    covered = (
        stood_in_for(group, observation, draft.fabric) | perhaps_lost(group) | draft.flips.keys()
    )
    members = tuple(m for m in members_of(group) if m.name not in covered)
    for role in ROLES:
        excess = sum(m.role == role for m in members) - wanted.kept(role)
        if excess <= 0:
            continue
        level = wanted.locality_level if wanted.locality_mode == "Preferred" else None
        beside = draft.beside(group.revision, group.index)
        by_name = {i.name: i for i in group.staying}
        # One of whose node nothing is heard may be lost already: it goes before one that serves.
        sure = [replace(m, ready=m.ready and not by_name[m.name].silent) for m in members]
        chosen = choose_removal(draft.fabric, role, sure, excess, level, beside)
        ready = {m.name for m in members_of(group) if m.ready}
        replaced = {i.replaces for i in group.staying}
        # Some operator judged it lost, perhaps another one: its successor is there.
        former = [n for n, i in by_name.items() if i.uid in replaced and i.role == role]
        names = [n for n in former if n not in ready]
        names += [n for n in chosen.names if n not in names]
        begun = len(draft.actions)
        staying = {m.name for m in members if m.role == role}
        for name in names[: len(chosen.names)]:
            if name in ready and not (grown or growth_blocked):
                draft.reasons.append(f"{name} stays until the other role's growth is ready")
                continue
            others = (n for n in staying if n != name and not by_name[n].silent)
            if group.serving and not any(map(observation.knows_route, others)):
                draft.reasons.append(f"{name} stays until gateways know another {role}")
                continue
            staying.discard(name)
            retire(group, by_name[name], f"{role} shrinks", observation, draft)
        if len(draft.actions) > begun:
            draft.reasons += [f"{role} shrinks: {line}" for line in chosen.explanation]


def _end_stand_ins(group: GroupView, observation: Observation, draft: PlanDraft) -> None:
    """In an outdated group, which does not shrink: of two in one slot one goes when the node of the
    first takes instances again. Their devices may be what its successor waits for.
    """
    covered = stood_in_for(group, observation, draft.fabric) | perhaps_lost(group)
    first = {i.uid: i for i in group.staying if i.name not in covered}
    for instance in group.staying:
        former = first.get(instance.replaces or "")
        if former is not None:
            leaves = instance if instance.ready <= former.ready else former
            stays = former if leaves is instance else instance
            if group.serving and not observation.knows_route(stays.name):
                draft.reasons.append(f"{leaves.name} stays until gateways know {stays.name}")
                continue
            where = ", ".join(dict.fromkeys(former.nodes))
            why = f"{where} takes instances again: one is enough in {instance.slot}"
            retire(group, leaves, why, observation, draft)


def _never_served(group: GroupView) -> bool:
    """No instance was ever linked, and a whole role is missing."""
    marked = any(m.linked_container is not None for i in group.members for m in i.members)
    if marked or any(group.named(i) for i in group.members):
        return False
    return not all(group.of_role(role) for role in ROLES)


def _awaits_devices(group: GroupView, observation: Observation) -> bool:
    """Devices of lost members come back to the group, so it can still be completed."""
    coming = any(_lost(i) and any(m.holds for m in i.members) for i in group.members)
    return coming or any(c.group_index == group.index for c in counted(observation))


def _leaf_of(fabric: Fabric, instance: InstanceObs) -> Path | None:
    """Where an instance was, though its Node may be gone."""
    leaf = fabric.leaf(instance.node)
    if leaf is not None:
        return leaf
    levels = fabric.spec.levels[: fabric.spec.leaf_depth]
    values = tuple(instance.domains.get(level.name, "") for level in levels)
    return values if all(values) else None
