"""Role flip: an instance of the role that has too many becomes one of the role that has too few.

    drain, marked `flip-to` -> idle, out of routes and table (as `removal` does it)
        -> not Linked -> label of the new role, marks gone -> table, links, routes as a newcomer

The pod, its devices and the loaded model stay. Each step is one write, so an operator that dies
between two leaves a pod of one role that the next one goes on with. The peer table is the engine's
order: it takes the role in which a table names it.
"""

from __future__ import annotations

from dataclasses import replace

from pdserve.groups.flip_types import FlipRole
from pdserve.groups.instances import InstanceObs
from pdserve.groups.types import BeginDrain, MarkUnlinked, Observation, Wanted
from pdserve.groups.view import GroupView, PlanDraft, members_of, perhaps_lost, stood_in_for
from pdserve.placement import choose_removal
from pdserve.terms import ROLES, Role


def flipping_to(group: GroupView, role: Role) -> frozenset[str]:
    """Names of instances on their way to `role`: they count as its growth."""
    return frozenset(
        i.name for i in group.members
        if i.flip_to == role and i.fault is None and not i.terminating
    )  # fmt: skip


def from_flips(group: GroupView, role: Role, wanted: Wanted) -> int:
    """How many instances of `role` the flips under way give: to it, and those to come back.

    One whose new role needs it no more, since counts changed meanwhile, comes back.
    """
    other: Role = "decode" if role == "prefill" else "prefill"
    away = len(flipping_to(group, other))
    over = len(group.of_role(other)) + away - wanted.kept(other)
    return len(flipping_to(group, role)) + max(0, min(away, over))


def start_flips(group: GroupView, observation: Observation, draft: PlanDraft) -> None:
    """Start flips where one role has too many and the other too few, into `draft.flips`.

    Only instances that run are worth it, and only while another one of their role stays routed.
    """
    wanted = observation.wanted
    if wanted.paused or not _alike(wanted):
        return
    covered = stood_in_for(group, observation, draft.fabric) | perhaps_lost(group)
    members = tuple(m for m in members_of(group) if m.name not in covered)
    have = {role: sum(m.role == role for m in members) for role in ROLES}
    for role, other in (ROLES, tuple(reversed(ROLES))):
        # A spare takes the other role; what that one has too much may become a spare.
        excess = have[role] - wanted.role(role).count
        short = wanted.kept(other) - have[other] - len(flipping_to(group, other))
        count = min(excess, short)
        if count <= 0:
            continue
        level = wanted.locality_level if wanted.locality_mode == "Preferred" else None
        beside = draft.beside(group.revision, group.index)
        chosen = choose_removal(draft.fabric, role, members, count, level, beside)
        names = chosen.names
        if wanted.spares:
            idle = [m.name for m in members if m.role == role and m.ready]
            idle = [name for name in idle if not observation.knows_route(name)]
            names = (*idle, *(n for n in names if n not in idle))[:count]
        _begin(group, role, other, names, observation, draft)
        return


def _begin(
    group: GroupView,
    role: Role,
    other: Role,
    names: tuple[str, ...],
    observation: Observation,
    draft: PlanDraft,
) -> None:
    by_name = {i.name: i for i in group.of_role(role)}
    for name in names:
        instance = by_name[name]
        stay = [
            i for i in by_name.values()
            if i.name != name and i.name not in draft.flips and not i.silent
            and i.name in group.routable and observation.knows_route(i.name)
        ]  # fmt: skip
        ends = any(draft.fabric.end_of(node) is not None for node in instance.nodes)
        if not stay or not instance.flips or instance.silent or not instance.running or ends:
            continue
        (member,) = instance.members
        why = f"takes role {other}: {role} shrinks, {other} grows"
        draft.act(
            BeginDrain(member.pod, member.uid, why, other), f"drain {member.pod}, which {why}"
        )
        draft.flips[name] = other


def go_on(instance: InstanceObs, draft: PlanDraft) -> None:
    """The next step of a flip whose instance is idle, and in no route and no table."""
    (member,) = instance.members
    role = instance.flip_to
    if member.linked_container is not None:
        why = f"it takes role {role}"
        draft.act(
            MarkUnlinked(member.pod, member.uid, why), f"{member.pod} is no longer linked: {why}"
        )
    elif role is not None:
        draft.act(FlipRole(member.pod, member.uid, role), f"{member.pod} is a {role} from now on")


def _alike(wanted: Wanted) -> bool:
    """Whether an instance of either role takes the same on the same nodes."""
    return wanted.prefill == replace(wanted.decode, count=wanted.prefill.count)
