"""Stand-ins: one more instance in the slot of one whose node is closed, or ends soon.

The first one stays until it is evicted or drained; the two count as one (`view.stood_in_for`).
Neighbours: `evictions` and `ending` say for which.
"""

from __future__ import annotations

from collections.abc import Sequence

from pdserve.groups.creation import placed
from pdserve.groups.instances import InstanceObs
from pdserve.groups.naming import new_pods, pod_name
from pdserve.groups.repairs import waits_until
from pdserve.groups.search import InstanceSearch
from pdserve.groups.types import CreateInstance, Observation
from pdserve.groups.view import GroupView, PlanDraft, closed_nodes, members_of
from pdserve.placement import NoFit


def create_stand_ins(
    group: GroupView, closed: Sequence[InstanceObs], own: Observation, draft: PlanDraft
) -> None:
    """Create those that are missing, as far as there is room.

    `own`: the observation by which the group is kept up (`view.at_own_revision`).
    """
    made_now = {a.pod.replaces for a in draft.actions if isinstance(a, CreateInstance)}
    replaced = made_now | {i.replaces for i in group.staying}
    away = {i.name for i in closed}
    members = [m for m in members_of(group) if m.name not in away]
    for instance in closed:
        name = pod_name(instance.slot, group.revision, instance.uid)
        taken = any(i.name == name for i in group.members)
        if instance.uid in replaced or instance.revision != group.revision or taken:
            continue
        if group.table is not None and group.table.peer(name) is not None:
            continue  # peers first learn that its former holder is gone
        repair = next((r for r in draft.repairs if r.slot == instance.slot), None)
        if repair is not None:
            due = waits_until(repair, own.bettered, draft.fabric)
            if own.now < due:
                draft.wait(due - own.now)
                continue
        near = draft.fabric.leaf(instance.node)
        found = InstanceSearch(group, instance.role, near, members, own, draft).spare()
        if isinstance(found, NoFit):
            draft.reasons.append(f"nothing stands in for {instance.name}: {found.message}")
            continue
        shut = ", ".join(closed_nodes(instance, own, draft.fabric))
        why = f"stands in for {instance.name}, as {shut} takes no new instance"
        pods = new_pods(
            instance.slot, instance.role, group.index, group.revision, found.nodes, draft.fabric,
            instance.uid,
        )  # fmt: skip
        where = ", ".join(dict.fromkeys(found.nodes))
        draft.act(CreateInstance(pods, why, stands_in=True), f"create {name} on {where}: {why}")
        draft.promise(found.reservations)
        (made,) = placed(pods)
        members.append(made)
        draft.place(group.index, group.revision, [made])
