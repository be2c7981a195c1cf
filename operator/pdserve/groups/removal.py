"""How an instance leaves: out of the routes, idle, out of the table, then deleted. For all pods.

    leaving    drain: annotate -> not routed -> idle or deadline -> table without it -> delete
    flip       as leaving, then another role instead of the deletion (`flip`)
    faulty: not routed and not in the table -> delete at once

Routes are computed from the same observation, so an instance leaves them before anything else
happens to it. `tables` drops what `finished` allows; this module starts drains and deletes. The
members of an instance go together: each step applies to all of them.
"""

from __future__ import annotations

from collections.abc import Iterable

from pdserve.groups.flip import go_on
from pdserve.groups.instances import InstanceObs
from pdserve.groups.polls import may_drain
from pdserve.groups.types import BeginDrain, CreateGroup, DeletePod, DeleteTable, Observation
from pdserve.groups.view import GroupView, PlanDraft, leaving


def retire(
    group: GroupView, instance: InstanceObs, reason: str, observation: Observation, draft: PlanDraft
) -> None:
    """Start the way out of one instance that a plan gives up, unless it is on it.

    One that was never in a table or route serves no request: it needs no drain. One that was
    linked may have left both by a fault that passed, with requests still running.
    """
    if leaving(instance):
        return
    routed = instance.name in observation.routed
    served = group.named(instance) or routed or instance.ever_linked
    for member in instance.members:
        # The mark tells this deletion from a loss in every later plan.
        said = f"drain {member.pod}" if served else f"give up {member.pod}, which never served"
        draft.act(BeginDrain(member.pod, member.uid, reason), f"{said}: {reason}")
    for member in () if served else instance.members:
        draft.act(
            DeletePod(member.pod, member.uid, reason),
            f"delete {member.pod}, which never served: {reason}",
        )


def finished(group: GroupView, instance: InstanceObs, observation: Observation) -> bool:
    """May the peer table drop this instance now? Only meaningful for one that leaves.

    A faulty one at once. A draining one after it left the routes, when it is idle, never was linked
    or cannot run anything, or its deadline has passed. One deleted from outside when it stopped
    running: until then its preStop hook lets the KV reads it serves end.
    """
    if instance.fault is not None:
        return True
    if instance.terminating:
        return not instance.running
    if instance.drain_started is None or instance.name in observation.routed:
        return False
    if not instance.running or not instance.ever_linked:
        return True  # no request and no KV read is there
    if observation.now - instance.drain_started >= observation.wanted.drain_seconds:
        return True
    report = observation.drains.get(instance.name)
    named = {i.name for i in group.members if group.named(i)}
    asked = may_drain(instance, group.members, named, observation.routed)
    return asked and report is not None and report.idle


def delete_finished(
    groups: Iterable[GroupView], observation: Observation, draft: PlanDraft
) -> None:
    """Last step but status: delete pods whose way out has ended, and tables of empty groups."""
    present: set[int] = set()
    for group in groups:
        present.add(group.index)
        for instance in group.members:
            _delete_if_done(group, instance, observation, draft)
    made = {a.group_index for a in draft.actions if isinstance(a, CreateGroup)}
    for index in sorted(set(observation.tables) - present - made):
        draft.act(DeleteTable(index), f"group {index} has no pod left: delete its peer table")


def _delete_if_done(
    group: GroupView, instance: InstanceObs, observation: Observation, draft: PlanDraft
) -> None:
    if instance.name in observation.routed or group.named(instance):
        return
    for member in instance.members:
        # Nothing else can end it.
        force = member.fault == "NodeDeleted"
        if member.terminating:
            if force:
                why = "its Node is gone, nothing else can end it"
                draft.act(
                    DeletePod(member.pod, member.uid, why, force=True),
                    f"force-delete {member.pod}: {why}",
                )
            continue
        if instance.terminating:
            why = "another member is being deleted"
        elif instance.fault is not None:
            why = instance.fault
        elif instance.drain_started is not None and finished(group, instance, observation):
            why = "drained"
        else:
            continue
        if why == "drained" and instance.flip_to is not None and group.staying:
            go_on(instance, draft)
            continue
        draft.act(
            DeletePod(member.pod, member.uid, why, force=force), f"delete {member.pod}: {why}"
        )


def drain_deadlines(
    groups: Iterable[GroupView], observation: Observation, draft: PlanDraft
) -> None:
    """Ask to be called when the next drain deadline passes; mark members that missed the drain."""
    for group in groups:
        for instance in group.members:
            if instance.drain_started is not None and not instance.terminating:
                for member in (m for m in instance.members if not m.draining):
                    why = "another member drains"
                    draft.act(BeginDrain(member.pod, member.uid, why), f"drain {member.pod}: {why}")
                end = instance.drain_started + observation.wanted.drain_seconds
                if end > observation.now:
                    draft.wait(end - observation.now)
