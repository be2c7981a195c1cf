"""Exactly one pod per P/D group carries the scale-unit label, so that an HPA counts groups."""

from __future__ import annotations

from pdserve.groups.types import MoveScaleUnit
from pdserve.groups.view import GroupView, PlanDraft


def place_scale_unit(group: GroupView, draft: PlanDraft) -> None:
    """Keep it where it is while that pod stays; else move it to the first one that stays.

    It is taken off before it is put on: for a moment none is better than two, which would make an
    HPA scale out.
    """
    staying = group.staying
    if not staying:
        return
    carrier = next((i for i in staying if i.scale_unit), staying[0])
    for instance in group.members:
        for member in instance.members:
            if member.scale_unit and instance is not carrier:
                draft.act(
                    MoveScaleUnit(member.pod, member.uid, present=False),
                    f"{member.pod} no longer stands for group {group.index}",
                )
    if not carrier.scale_unit:
        leader = carrier.members[0]
        draft.act(
            MoveScaleUnit(leader.pod, leader.uid, present=True),
            f"{leader.pod} stands for group {group.index}",
        )
