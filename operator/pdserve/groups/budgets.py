"""How many instances of each P/D group an eviction must leave: its PodDisruptionBudget.

`kubectl drain` evicts what the budgets allow. All staying members are kept, but those on nodes
that take no new instance (cordoned, tainted) are given up, of one P/D group at a time and only
while the scenario is served without them. A drain of nodes one after the other then takes one
group after the other, each when the one before serves again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pdserve.groups.types import Observation
from pdserve.groups.view import Draft, GroupView, on_closed_nodes
from pdserve.wire.peers import ROLES


def budgets(
    groups: Sequence[GroupView], observation: Observation, draft: Draft
) -> Mapping[int, int]:
    """`minAvailable` by group index, for the groups that have pods.

    A group whose budget is lowered keeps that turn while it needs it: two budgets are never low
    at once, as evictions are seen later than they are granted.
    """
    kept = {
        g.index: sum(1 for i in g.members if not i.terminating and i.fault is None) for g in groups
    }
    spare = {g.index: _spare(g, groups, observation, draft) for g in groups}
    known = observation.budgets
    before = [g.index for g in groups if known.get(g.index, kept[g.index]) < kept[g.index]]
    may = [index for index, count in spare.items() if count]
    turn = min(may, key=lambda i: (i not in before, i), default=None)
    if turn is None or set(before) - {turn}:
        return kept  # whatever is low is raised first
    return {**kept, turn: kept[turn] - spare[turn]}


def _spare(
    group: GroupView, groups: Sequence[GroupView], observation: Observation, draft: Draft
) -> int:
    """How many instances of the group may be evicted at once: none while another group starts.

    A group that alone serves gives up whom it can serve without, or one after the other where
    each role on those nodes has another instance.
    """
    closed = on_closed_nodes(group, observation, draft.fabric)
    others = [g for g in groups if g is not group and not g.gone]
    if not closed or not all(g.serving for g in others):
        return 0
    names = {i.name for i in closed}
    if others or all(group.ready(role, without=names) for role in ROLES):
        return len(closed)
    return int(all(group.ready(role) > 1 for role in {i.role for i in closed}))
