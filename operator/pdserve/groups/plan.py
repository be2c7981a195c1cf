"""The group planner: what exists + what is wanted -> actions, status and reasons.

A pure function, called by the operator and the simulations alike. Steps, each in its module: 1
judge late starts, count faults; 2 which groups; 3 inside each group, spares last; 4 tables; 5
links; 6 the scale-unit label; 7 deletions; 8 eviction budgets; 9 status. Actions come in the order
in which they must be carried out, and each is safe to repeat: a crash between any two leaves a
state from which the next observation goes on.
"""

from __future__ import annotations

from dataclasses import replace

from pdserve.groups.claims import counted
from pdserve.groups.evictions import decide_evictions
from pdserve.groups.linking import tell_leaders, update_links
from pdserve.groups.ownership import kept_claims
from pdserve.groups.removal import delete_finished, drain_deadlines
from pdserve.groups.repairs import count_faults, suspicion_ends
from pdserve.groups.report import conditions, group_status, settled
from pdserve.groups.resize import resize_group
from pdserve.groups.rollout import follow
from pdserve.groups.scale import scale_groups
from pdserve.groups.scaleunit import place_scale_unit
from pdserve.groups.spare_places import keep_spares
from pdserve.groups.startup import judge_startups
from pdserve.groups.tables import publish_table
from pdserve.groups.types import Observation, Plan
from pdserve.groups.view import PlanDraft, group_views, members_of
from pdserve.topology import Fabric


def plan(observation: Observation, fabric: Fabric) -> Plan:
    """Plan one ScenarioGroup. Same inputs, same plan, byte for byte (invariant 8)."""
    draft = PlanDraft(fabric, claims=counted(observation))
    # 1
    observation = judge_startups(observation)
    groups = group_views(observation)
    draft.members = {g.index: (g.revision, members_of(g)) for g in groups if not g.gone}
    count_faults(observation, draft)
    # 2
    live = [g for g in groups if not g.gone]
    rollout = follow(live, observation)
    observation = replace(observation, rollout=rollout)
    kept = scale_groups(groups, observation, draft)
    # 3
    unplaced = sum(resize_group(group, observation, draft) for group in kept)
    keep_spares(kept, unplaced, observation, draft)
    # 4, 5, 6
    for group in groups:
        publish_table(group, observation, draft)
        tell_leaders(group, draft)
        update_links(group, observation, draft)
        place_scale_unit(group, draft)
    # 7
    delete_finished(groups, observation, draft)
    drain_deadlines(groups, observation, draft)
    # 8
    budgets = decide_evictions(groups, observation, draft)
    # 9
    waits = [*draft.waits, *(i.recheck_after for i in observation.instances if i.recheck_after)]
    ends = suspicion_ends(draft.repairs, observation.now, fabric)
    if draft.blocked and ends is not None:
        waits.append(ends)
    return Plan(
        actions=tuple(draft.actions),
        groups=tuple(group_status(g, observation, fabric) for g in groups),
        conditions=conditions(groups, observation, draft),
        repairs=draft.repairs,
        requeue_after=min(waits) if waits else None,
        claims=kept_claims(groups, kept, observation, draft),
        blocked_request=draft.blocked_request,
        budgets=budgets,
        reasons=tuple(draft.reasons),
        settled=settled(groups, observation, draft),
        rollout=rollout,
    )
