"""`spec.rollout` and `status.rollout` of a ScenarioGroup as the planner takes them. Pure.

Scenarios of one PDService have one template and roll one by one, unless they may roll together:
`comes_first` says whose turn it is.
"""

from __future__ import annotations

from collections.abc import Mapping

from pdserve.api import PDService, ScenarioGroup, revision_of
from pdserve.groups.rollout import NEEDS_DEVICES
from pdserve.groups.rollout_types import RolloutState, RolloutWanted
from pdserve.terms.json import JsonObject
from pdserve.terms.times import epoch_of, rfc3339


def rollout_wanted(group: ScenarioGroup) -> RolloutWanted:
    """How its P/D groups are to be replaced; whose turn it is comes from `comes_first`."""
    spec = group.spec
    rule = spec.rollout
    promoted = rule.promoted_revision == revision_of(spec)
    starts = max(spec.prefill.startup_deadline_seconds, spec.decode.startup_deadline_seconds)
    return RolloutWanted(
        order=rule.order,
        max_unavailable=rule.max_unavailable_groups,
        canary=None if promoted else rule.canary_groups,
        deadline=float(rule.progress_deadline_seconds or 2 * starts),
        allow_outage=rule.allow_outage,
        paused=rule.paused,
    )


def rollout_state(group: ScenarioGroup) -> RolloutState:
    """What status remembers; nothing where an operator before this feature wrote it."""
    known = group.status.rollout
    if known is None:
        return RolloutState()
    since = known.waiting_since_time
    return RolloutState(
        known.revision, known.stable_revision, known.serving_groups,
        None if since is None else epoch_of(since),
    )  # fmt: skip


def to_json(state: RolloutState) -> JsonObject:
    """The state as status has it."""
    return {
        "revision": state.revision,
        "stableRevision": state.stable,
        "servingGroups": state.serving,
        # Status is merged: only null takes a field out.
        "waitingSinceTime": None if state.since is None else rfc3339(state.since),
    }


def comes_first(
    service: PDService, group: ScenarioGroup, others: Mapping[str, ScenarioGroup]
) -> str:
    """The scenario whose rollout must end before that of `group`; empty where it is its turn.

    One whose rollout waits for devices is passed over.

    Args:
        service: the PDService that made them.
        group: the ScenarioGroup in question.
        others: its ScenarioGroups by scenario.
    """
    if service.spec.rollout.scenarios == "Together":
        return ""
    wanted = revision_of(group.spec)
    for scenario in service.spec.scenarios:
        if scenario.name == group.spec.scenario:
            return ""
        other = others.get(scenario.name)
        if other is not None and not _passed(other, wanted):
            return scenario.name
    return ""


def _passed(group: ScenarioGroup, wanted: str) -> bool:
    if revision_of(group.spec) != wanted:
        return False  # it has not even been given the template
    status = group.status
    if not status.groups:
        return True
    if status.rollout is not None and status.rollout.revision != wanted:
        return False  # nothing has looked at it since
    if any(g.revision != wanted for g in status.groups):
        # What drains counts: its devices may be what the next one needs. One that waits for devices
        # may do so for days, and holds no other up.
        told = (c.reason for c in status.conditions if c.type == "Progressing")
        return NEEDS_DEVICES in told
    if status.rollout is not None and status.rollout.stable_revision == wanted:
        return True
    return all(g.prefill.ready and g.decode.ready for g in status.groups)
