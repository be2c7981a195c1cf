"""Which members of a P/D group may be evicted: its PodDisruptionBudget, and stand-ins for a drain.

`kubectl drain` closes a node to new pods. Then it asks for the eviction of each pod, again and
again until the pod's budget allows it. A member is *closed* when its node takes no new instance,
else open.

    no member is closed                         nothing may be evicted
    the open members serve, or none does        closed members may be evicted
    another group serves on open nodes          the same, one group after the other
    else                                        held, while stand-ins for one such group start

A stand-in is one more instance in the slot of a closed one. The closed one stays until it is
evicted, because a node may be closed for long without being emptied. Every hold ends:
after `drainSeconds` where no stand-in is on its way, else after the startup deadline; each further
group may hold once more for that time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pdserve.groups.instances import InstanceObs
from pdserve.groups.stand_ins import create_stand_ins
from pdserve.groups.types import ConditionState, CreateInstance, DisruptionBudget, Observation
from pdserve.groups.view import (
    GroupView,
    PlanDraft,
    at_own_revision,
    closed_members,
)
from pdserve.terms import ROLES

HELD = "EvictionHeld"
UNCOVERED = "EvictionUncovered"
"""Reasons of the condition Progressing."""
HAND_OVER = 60.0
"""Seconds after which a group whose closed members may be evicted, and are not, holds up the next
one no longer: its nodes were closed and are not being emptied."""
RETRY = 30.0
"""Seconds until a place for a stand-in is looked for again."""


@dataclass(frozen=True, slots=True)
class _Closing:
    """A group with closed members."""

    group: GroupView
    closed: tuple[InstanceObs, ...]
    since: float

    @property
    def nodes(self) -> str:
        return ", ".join(sorted({n for i in self.closed for n in i.nodes}))

    @property
    def open_serves(self) -> bool:
        """Both roles can serve without the closed members."""
        away = {i.name for i in self.closed}
        return all(self.group.ready(role, without=away) for role in ROLES)

    @property
    def open_starts(self) -> bool:
        """Some other member does not serve yet."""
        away = {i.name for i in self.closed}
        group = self.group
        return any(i.name not in away and i.name not in group.routable for i in group.staying)


def decide_evictions(
    groups: Sequence[GroupView], observation: Observation, draft: PlanDraft
) -> Mapping[int, DisruptionBudget]:
    """The budget of each group that has pods; stand-ins are added to the draft.

    Order of groups with closed members: since when they have some, then the index.
    """
    closing = sorted(_closing(groups, observation, draft), key=lambda c: (c.since, c.group.index))
    by_index = {c.group.index: c for c in closing}
    serving = [
        g.index
        for g in groups
        if not g.gone and (by_index[g.index].open_serves if g.index in by_index else g.serving)
    ]
    returning = [g for g in groups if g.index not in by_index and _comes_back(g, draft)]
    if not serving and not returning:
        _stand_in(closing, observation, draft)
    free: set[int] = set()
    last: _Closing | None = None
    for place, this in enumerate(closing):
        index = this.group.index
        if not this.group.has_served or (this.open_serves and not this.open_starts):
            free.add(index)
        elif set(serving) - {index}:
            if returning:
                _hold(this, f"until group {returning[0].index} serves again", draft)
            elif last is not None and observation.now - last.since < HAND_OVER:
                draft.wait(HAND_OVER - (observation.now - last.since))
                _hold(this, f"while those of group {last.group.index} go", draft)
            else:
                free.add(index)
                last = this
        elif _overdue(this, place, bool(returning), observation, draft):
            free.add(index)
    return {g.index: _budget(g, by_index.get(g.index), g.index in free) for g in groups}


def _closing(
    groups: Sequence[GroupView], observation: Observation, draft: PlanDraft
) -> list[_Closing]:
    found = []
    for group in groups:
        closed = closed_members(group, observation, draft.fabric)
        if closed:
            known = observation.budgets.get(group.index)
            began = known.since if known is not None and known.since is not None else None
            since = observation.now if began is None else min(began, observation.now)
            found.append(_Closing(group, closed, since))
    return found


def _comes_back(group: GroupView, draft: PlanDraft) -> bool:
    """It does not serve, but its instances start, and none of them has failed twice."""
    if group.serving or group.gone or not group.has_served:
        return False
    _, members = draft.members.get(group.index, ("", ()))
    failures = {r.slot: r.failures for r in draft.repairs}
    once = all(failures.get(i.slot, 0) <= 1 for i in group.members)
    return once and {m.role for m in members} == set(ROLES)


def _overdue(
    this: _Closing, place: int, returning: bool, observation: Observation, draft: PlanDraft
) -> bool:
    """Whether a group that alone serves has been held for long enough; says so either way."""
    wanted = observation.at(this.group.revision) or observation.wanted
    made = any(a.stands_in for a in draft.actions if isinstance(a, CreateInstance))
    starts = this.open_starts or made or returning
    deadline = max(wanted.role(role).startup_deadline for role in ROLES)
    hold = (deadline if starts else observation.wanted.drain_seconds) * (place + 1)
    end = this.since + hold
    if observation.now >= end:
        message = (
            f"group {this.group.index} alone serves; its instances on {this.nodes} may be evicted, "
            f"though after {hold:.0f} s none stands in for them"
        )
        _say(draft, UNCOVERED, message)
        return True
    draft.wait(min(end - observation.now, RETRY))
    at = datetime.fromtimestamp(end, UTC).isoformat(timespec="seconds")
    _hold(this, f"until others stand in for them, at most until {at}: it alone serves", draft)
    return False


def _hold(this: _Closing, why: str, draft: PlanDraft) -> None:
    message = f"group {this.group.index} keeps its instances on {this.nodes} {why}"
    _say(draft, HELD, message)


def _say(draft: PlanDraft, reason: str, message: str) -> None:
    draft.reasons.append(message)
    if draft.progressing is None:
        draft.progressing = ConditionState("Progressing", "True", reason, message)


def _budget(group: GroupView, closing: _Closing | None, free: bool) -> DisruptionBudget:
    """What an eviction must leave. The disruption controller counts pods that are Ready.

    One that becomes Ready must give no other one away, so all pods count where none may go.
    """
    there = [i for i in group.members if not i.terminating]
    every = sum(len(i.members) for i in there)
    if closing is None:
        return DisruptionBudget(every)
    if not free:
        return DisruptionBudget(every, closing.since)
    names = {i.name for i in closing.closed}
    stay = (m for i in there if i.name not in names for m in i.members)
    return DisruptionBudget(sum(m.ready for m in stay), closing.since)


def _stand_in(closing: Sequence[_Closing], observation: Observation, draft: PlanDraft) -> None:
    """Create stand-ins for one group that serves on closed nodes only, as far as there is room."""
    this = next((c for c in closing if c.group.has_served), None)
    if this is None or observation.wanted.paused:
        return
    own = at_own_revision(this.group, observation)
    if own is not None:
        create_stand_ins(this.group, this.closed, own, draft)
