"""Which instance that answers, but is not Ready after its deadline, is itself at fault.

Ready includes Linked, and a link needs both ends: a decode whose only prefill loads its weights
for an hour is healthy. `health` judges an engine that does not answer at all. This module judges
after `startup_deadline` seconds in which the instance and its peers answered:

    linked, but not Ready since then    its own readiness fails: lost
    none of the other role answers      it waits for others: not lost
    others of the other role are linked all others managed to: lost
    none is linked                      one at a time is lost, the others get another deadline:
                                        first the one that the table no longer names, then one that
                                        has not taken over the table, then the youngest
"""

from __future__ import annotations

from dataclasses import replace

from pdserve.groups.instances import InstanceObs
from pdserve.groups.routable import peer_entry
from pdserve.groups.types import Observation
from pdserve.groups.view import GroupView, group_views, leaving


def judge_startups(observation: Observation) -> Observation:
    """Mark instances whose start failed by themselves with fault StartupDeadline.

    Those whose deadline still runs get `recheck_after`, so that the plan is made again then.
    """
    changed: dict[str, InstanceObs] = {}
    for group in group_views(observation):
        waiting = [i for i in group.staying if i.up_since is not None and not i.ready]
        if not waiting:
            continue
        late: list[InstanceObs] = []
        for instance in waiting:
            left = _left(instance, group, observation.now)
            if left is None:
                continue
            if left > 0:
                check = min(left, instance.recheck_after or left)
                changed[instance.name] = replace(instance, recheck_after=check)
            else:
                late.append(instance)
        for instance in _at_fault(late, group, observation):
            message = (
                f"not Ready {observation.now - (instance.up_since or 0.0):.0f} s after it "
                f"answered first, startupDeadlineSeconds is {instance.startup_deadline:.0f}"
            )
            changed[instance.name] = replace(
                instance, fault="StartupDeadline", fault_message=message
            )
    if not changed:
        return observation
    instances = tuple(changed.get(i.name, i) for i in observation.instances)
    return replace(observation, instances=instances)


def _left(instance: InstanceObs, group: GroupView, now: float) -> float | None:
    """Seconds until it is late; None while it waits for another instance."""
    assert instance.up_since is not None  # noqa: S101 - the caller's filter
    began = max(instance.up_since, instance.unready_since or 0.0)
    if instance.linked:
        # Ready follows Linked, for which it may have waited long.
        began = max(began, instance.linked_since or 0.0)
    else:
        others = [
            i.up_since or 0.0
            for i in _opposite(instance, group)
            if i.linked or i.up_since is not None
        ]
        if not others:
            return None
        began = max(began, min(others))
    return began + instance.startup_deadline - now


def _at_fault(
    late: list[InstanceObs], group: GroupView, observation: Observation
) -> list[InstanceObs]:
    """Of the late ones those that fail by themselves."""
    failed = [i for i in late if i.linked or any(o.linked for o in _opposite(i, group))]
    rest = [i for i in late if i not in failed]
    # The table was taken from it for this already: the fault must not pass to another now.
    dropped = [i for i in rest if group.table is not None and not group.named(i)]
    behind = dropped or [i for i in rest if not _has_table(i, group, observation)]
    if behind:
        return failed + behind
    # None is linked and each has done its part: the youngest goes.
    unclear = [i for i in rest if all(o in late for o in _opposite(i, group) if o.up_since)]
    return failed + sorted(unclear, key=lambda i: (-i.created, i.name))[:1]


def _has_table(instance: InstanceObs, group: GroupView, observation: Observation) -> bool:
    report = observation.links.get(instance.name)
    if group.table is None or peer_entry(instance, group.table) is None:
        return True  # it was given none
    return report is not None and report.version >= group.table.version


def _opposite(instance: InstanceObs, group: GroupView) -> list[InstanceObs]:
    return [
        i
        for i in group.members
        if i.role != instance.role
        and i.revision == instance.revision
        and not leaving(i)
        and i.running
    ]
