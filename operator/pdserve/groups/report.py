"""What ScenarioGroup status says: one line per P/D group, and the four conditions."""

from __future__ import annotations

from collections.abc import Sequence

from pdserve.groups.types import (
    BeginDrain,
    ConditionState,
    DeletePod,
    GroupSummary,
    Observation,
    Wanted,
)
from pdserve.groups.view import GroupView, PlanDraft, closed_members, members_of
from pdserve.placement import Cell, cell_text, crossing_percent, spread_of
from pdserve.terms import ROLES
from pdserve.topology import Fabric
from pdserve.wire.names import instance_name

_SHOWN = 3


def group_status(group: GroupView, observation: Observation, fabric: Fabric) -> GroupSummary:
    """Status of one group. A group on its way out wants nothing any more."""
    spread = spread_of(fabric, members_of(group))
    wanted = observation.wanted
    return GroupSummary(
        index=group.index,
        revision=group.revision,
        prefill_desired=0 if group.gone else wanted.prefill.count,
        prefill_ready=group.ready("prefill"),
        decode_desired=0 if group.gone else wanted.decode.count,
        decode_ready=group.ready("decode") - _spares(group, wanted),
        spares_desired=0 if group.gone else wanted.spares,
        spares_ready=_spares(group, wanted),
        cells=tuple(cell_text(fabric, Cell(leaf, *spread[leaf])) for leaf in sorted(spread)),
        cross_leaf_percent=crossing_percent(spread),
        table_version=group.table.version if group.table is not None else 0,
    )


def _spares(group: GroupView, wanted: Wanted) -> int:
    """How many of its decodes that can serve are spares."""
    return max(0, min(wanted.spares, group.ready("decode") - wanted.decode.count))


def conditions(
    groups: Sequence[GroupView], observation: Observation, draft: PlanDraft
) -> tuple[ConditionState, ...]:
    """Ready, Linked, Progressing, Placed, in this order."""
    ready = _ready(groups, observation, draft)
    return (
        ready,
        _linked(groups),
        draft.progressing or _progressing(groups, observation, draft, ready),
        _placed(groups, observation.now, draft),
    )


def settled(groups: Sequence[GroupView], observation: Observation, draft: PlanDraft) -> bool:
    """Whether nothing is to be done, waited for or kept in mind.

    Of all nodes, only those that the instances are on then mean anything to this ScenarioGroup.
    """
    if draft.actions or draft.waits or draft.blocked or draft.progressing or draft.repairs:
        return False
    wanted = observation.wanted
    return (
        not observation.claims
        and len(groups) == wanted.replicas
        and all(g.revision == wanted.revision and len(g.staying) == len(g.members) for g in groups)
        and all(len(g.of_role(r)) == wanted.kept(r) for g in groups for r in ROLES)
        and all(complete(g, observation) for g in groups)
        and all(_spares(g, wanted) == wanted.spares for g in groups)
        and not any(i.silent or i.recheck_after for i in observation.instances)
        and not any(closed_members(g, observation, draft.fabric) for g in groups)
    )


def complete(group: GroupView, observation: Observation) -> bool:
    """Every wanted instance of the group can serve."""
    return all(group.ready(role) >= observation.wanted.role(role).count for role in ROLES)


def _ready(
    groups: Sequence[GroupView], observation: Observation, draft: PlanDraft
) -> ConditionState:
    wanted = observation.wanted
    if wanted.replicas == 0:
        message = "no P/D group is wanted, so every request is answered 503"
        return ConditionState("Ready", "False", "ScaledToZero", message)
    live = [g for g in groups if not g.gone]
    done = [g for g in live if complete(g, observation)]
    said = f"{min(len(done), wanted.replicas)}/{wanted.replicas} P/D groups ready"
    if len(done) >= wanted.replicas:
        return ConditionState("Ready", "True", "AllReady", said)
    short = [
        f"group {g.index} has "
        + ", ".join(f"{g.ready(role)}/{wanted.role(role).count} {role}" for role in ROLES)
        for g in live
        if g not in done
    ]
    message = "; ".join([said, *short[:_SHOWN]])
    if any(g.serving for g in live):
        return ConditionState("Ready", "False", "Degraded", message)
    return ConditionState("Ready", "False", "NotPlaced" if draft.blocked else "Starting", message)


def _linked(groups: Sequence[GroupView]) -> ConditionState:
    staying = [i for g in groups for i in g.staying]
    unlinked = [i.name for i in staying if not i.linked]
    if not staying:
        return ConditionState("Linked", "False", "NoInstances", "there is no instance to link")
    if not unlinked:
        return ConditionState("Linked", "True", "AllLinked", f"{len(staying)} instances are linked")
    more = f" and {len(unlinked) - _SHOWN} more" if len(unlinked) > _SHOWN else ""
    return ConditionState(
        "Linked",
        "False",
        "Linking",
        f"{len(staying) - len(unlinked)}/{len(staying)} instances are linked, not "
        f"{', '.join(unlinked[:_SHOWN])}{more}",
    )


def _progressing(
    groups: Sequence[GroupView], observation: Observation, draft: PlanDraft, ready: ConditionState
) -> ConditionState:
    going = [i for g in groups for i in g.members if i not in g.staying]
    old = [g for g in groups if not g.gone and g.revision != observation.wanted.revision]
    lost = [i for i in going if i.fault is not None]
    if old:
        left = ", ".join(str(g.index) for g in old)
        return ConditionState(
            "Progressing", "True", "RollingOut", f"groups of an old revision: {left}"
        )
    if lost:
        names = ", ".join(f"{i.name} ({i.fault})" for i in lost[:_SHOWN])
        return ConditionState("Progressing", "True", "Repairing", f"lost: {names}")
    # Those this very plan sends away count too: a status that calls the present generation Complete
    # must not be written before its pods have gone.
    sent = {instance_name(a.name) for a in draft.actions if isinstance(a, BeginDrain | DeletePod)}
    if going or sent:
        count = len(sent | {i.name for i in going})
        return ConditionState("Progressing", "True", "Draining", f"{count} instances are leaving")
    if ready.status != "True" and ready.reason != "ScaledToZero":
        if draft.blocked and not draft.actions:
            return ConditionState("Progressing", "False", "NeedsDevices", draft.blocked[0])
        return ConditionState(
            "Progressing", "True", "Starting", "instances are being created or linked"
        )
    return ConditionState("Progressing", "False", "Complete", "what runs is what is wanted")


def _placed(groups: Sequence[GroupView], now: float, draft: PlanDraft) -> ConditionState:
    refused = _refused(groups, now, draft)
    if draft.blocked:
        told = [_first(draft.blocked), *([_first(refused)] if refused else [])]
        return ConditionState("Placed", "False", "NoFit", "; ".join(told))
    if refused:
        return ConditionState("Placed", "False", "Unschedulable", _first(refused))
    return ConditionState("Placed", "True", "AllPlaced", "every wanted instance has a node")


def _refused(groups: Sequence[GroupView], now: float, draft: PlanDraft) -> list[str]:
    """Slots whose instance the scheduler binds to no node, by slot, with the scheduler's words.

    A refused instance is given up after a while and tried elsewhere: until the next one is bound
    or refused itself, the last words count, also when no node is left to try.
    """
    staying = {i.slot: i for g in groups for i in g.staying}
    found = {
        slot: f"{i.name} has no node: {i.unscheduled}"
        for slot, i in staying.items()
        if i.unscheduled
    }
    for repair in draft.repairs:
        holder = staying.get(repair.slot)
        if holder is None:
            waits = bool(draft.blocked) or repair.not_before > now
        else:
            waits = not holder.bound
        if repair.fault == "Unschedulable" and waits and repair.slot not in found:
            found[repair.slot] = f"{repair.slot} had no node: {repair.message}"
    return [found[slot] for slot in sorted(found)]


def _first(told: Sequence[str]) -> str:
    also = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
    return told[0] + also
