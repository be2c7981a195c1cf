"""Where spares are made and given up: after all that serves (`spares` says what they are).

A spare is made once nothing of its ScenarioGroup lacks a place, in a group that has served. Where
an instance of a group lacks one, a spare makes room. A whole P/D group that waits for devices takes
none from spares: it is growth, and they are what the others rely on.
"""

from __future__ import annotations

from collections.abc import Sequence

from pdserve.groups.removal import retire
from pdserve.groups.resize import fill_vacancies, lacks_spares
from pdserve.groups.types import Observation
from pdserve.groups.view import GroupView, PlanDraft, at_own_revision


def keep_spares(
    kept: Sequence[GroupView], unplaced: int, observation: Observation, draft: PlanDraft
) -> None:
    """Make the spares of the groups that stay, or give up as many as instances lack a place."""
    if unplaced:
        _make_room(kept, unplaced, observation, draft)
    if draft.blocked:
        return
    for group in kept:
        own = at_own_revision(group, observation)
        if own is None or own.wanted.paused or not group.serving:
            continue
        fill_vacancies(group, "decode", lacks_spares(group, own, draft), own, draft)


def _make_room(
    kept: Sequence[GroupView], unplaced: int, observation: Observation, draft: PlanDraft
) -> None:
    wanted = observation.wanted
    if wanted.paused or not wanted.spares:
        return
    for group in reversed(kept):
        if group.revision != wanted.revision:
            continue
        over = [i for i in group.of_role("decode") if i.name not in draft.flips]
        spares = over[wanted.decode.count :]
        idle = [i for i in over if not observation.knows_route(i.name)]
        for instance in idle[: min(len(spares), unplaced)]:
            why = "an instance that is to serve has no other place"
            retire(group, instance, why, observation, draft)
            unplaced -= 1
