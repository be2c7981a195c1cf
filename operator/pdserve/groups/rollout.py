"""How far a rollout is, and what holds it: a person, its deadline, or another scenario's turn.

Which P/D group is replaced next is decided in `scale`. A rollout is on while some P/D group has
another revision than the wanted one. What is held here is the change of revisions alone: lost
instances are replaced and counts are followed all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from pdserve.groups.rollout_types import RolloutState
from pdserve.groups.types import ConditionState, Observation
from pdserve.groups.view import GroupView, PlanDraft

PAUSED = "RolloutPaused"
CANARY = "CanaryWaits"
STOPPED = "ProgressDeadlineExceeded"
TURN = "WaitsForScenario"
NEEDS_DEVICES = "NeedsDevices"
HELD: Final = frozenset({PAUSED, CANARY, STOPPED, TURN})
TURN_LOOK: Final = 5.0
"""Seconds until a scenario that waits for its turn looks again."""


@dataclass(frozen=True, slots=True)
class Hold:
    """How many P/D groups may have the wanted revision now, and why no more."""

    most: int
    """Of these, those that exist count."""
    told: ConditionState | None
    """None while the P/D groups that may have it are not there yet, or one is still to go."""
    strict: bool = True
    """Whether no P/D group may go for the rollout; a canary may still end its surge."""


def outdated(group: GroupView, observation: Observation) -> bool:
    """Whether a P/D group has another revision than the wanted one."""
    return group.revision != observation.wanted.revision


def follow(live: Sequence[GroupView], observation: Observation) -> RolloutState:
    """The state of the rollout now. `live`: the P/D groups that are not on their way out."""
    wanted, before = observation.wanted, observation.rollout
    if before.revision != wanted.revision:
        before = RolloutState(wanted.revision, before.stable)
    current = [g for g in live if not outdated(g, observation)]
    serving = sum(g.serving for g in current)
    complete = len(current) == len(live) >= wanted.replicas > 0 and serving == len(live)
    stable = wanted.revision if complete else before.stable
    since = None
    if serving < len(current) < len(live) and not wanted.rollout.paused:
        since = observation.now
        if before.since is not None and serving <= before.serving:
            since = min(before.since, observation.now)
    return RolloutState(wanted.revision, stable, max(serving, before.serving), since)


def hold_of(
    live: Sequence[GroupView], state: RolloutState, observation: Observation, draft: PlanDraft
) -> Hold | None:
    """What holds the rollout, or None. Order: a person, its deadline, its turn, its canary.

    The way back to the last complete revision waits for no canary.
    """
    wanted = observation.wanted
    rule = wanted.rollout
    has = sum(not outdated(g, observation) for g in live)
    far = f"{has} of {len(live)} P/D groups have revision {wanted.revision}"
    if rule.paused:
        return Hold(has, _told(PAUSED, f"{far}; rollout.paused is set"))
    if state.since is not None:
        left = state.since + rule.deadline - observation.now
        if left <= 0:
            starting = ", ".join(
                str(g.index) for g in live if not outdated(g, observation) and not g.serving
            )
            message = (
                f"{far}, and group {starting} did not serve within {rule.deadline:.0f} s; no "
                "further group is replaced. Correct the template or undo the rollout"
            )
            return Hold(has, _told(STOPPED, message))
        draft.wait(left)
    if rule.waits_for:
        draft.wait(TURN_LOOK)
        return Hold(has, _told(TURN, f"{far}; scenario {rule.waits_for} comes first"))
    back = wanted.revision == state.stable
    if rule.canary is not None and has >= rule.canary and not back:
        if state.since is not None or len(live) > wanted.replicas:
            return Hold(rule.canary, None, strict=False)
        message = f"{far}, as rollout.canaryGroups says; resume or undo the rollout"
        return Hold(rule.canary, _told(CANARY, message), strict=False)
    return None


def most_allowed(held: Hold | None, observation: Observation) -> int:
    """How many P/D groups may have the wanted revision in the end of this plan."""
    if held is not None:
        return held.most
    rule, back = observation.wanted.rollout, observation.rollout.stable
    if rule.canary is None or back == observation.wanted.revision:
        return observation.wanted.replicas
    return rule.canary


def as_before(live: Sequence[GroupView], observation: Observation) -> Observation | None:
    """The observation by which a missing P/D group is made at the revision before the rollout.

    That is the one that most P/D groups have; where none is left, the last complete one.
    """
    counts: dict[str, int] = {}
    for group in live:
        if outdated(group, observation) and observation.at(group.revision) is not None:
            counts[group.revision] = counts.get(group.revision, 0) + 1
    stable = observation.rollout.stable
    if not counts and not live and observation.at(stable) is not None:
        counts[stable] = 1
    if not counts:
        return None
    most = min(counts, key=lambda revision: (-counts[revision], revision))
    return replace(observation, wanted=observation.at(most) or observation.wanted)


def _told(reason: str, message: str) -> ConditionState:
    return ConditionState("Progressing", "False", reason, message)
