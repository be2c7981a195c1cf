"""Which P/D groups there should be: scale up and down, and the rollout of a new revision.

Groups roll one by one (P/D-Serve 3.3, rolling upgrade): at most one group more than wanted, and
only while a roll needs it. A serving group is given up for a new revision only when enough others
serve. A revert is an ordinary change of the wanted revision: the old groups that were not touched
are current again. Outdated groups are repaired at their own revision (`resize`) and serve until
their turn comes. So a revision that does not start costs at most one group, whatever else fails
meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from pdserve.groups.claims import of_gone_groups, reservations
from pdserve.groups.creation import create_group, find_place
from pdserve.groups.removal import retire
from pdserve.groups.repairs import suspects
from pdserve.groups.rollout import NEEDS_DEVICES, Hold, as_before, hold_of, most_allowed, outdated
from pdserve.groups.types import ConditionState, Observation
from pdserve.groups.view import GroupView, PlanDraft
from pdserve.placement import NoFit
from pdserve.terms import ROLES
from pdserve.topology import Fabric, Reservation


def scale_groups(
    groups: Sequence[GroupView], observation: Observation, draft: PlanDraft
) -> tuple[GroupView, ...]:
    """Phases: 1 give up what is too much; 2 create what is missing; 3 roll one outdated group.

    A missing group that finds no place does not hold up the roll, unless a group is on its way
    out: then its devices come first. Returns the groups that stay, for the steps inside a group.
    """
    live = [g for g in groups if not g.gone]
    if observation.wanted.paused:
        draft.progressing = ConditionState(
            "Progressing", "False", "Paused", "planned changes are paused"
        )
        return tuple(live)
    rolls = any(outdated(g, observation) for g in live)
    begins = not live and observation.wanted.rollout.paused
    held = hold_of(live, observation.rollout, observation, draft) if rolls or begins else None
    if held is not None and held.told is not None and rolls:
        draft.progressing = held.told
    # 1
    while True:
        excess = _next_excess(live, observation, draft, held)
        if excess is None:
            break
        live.remove(excess)
        del draft.members[excess.index]
        why = _why_removed(excess, observation)
        for instance in excess.members:
            retire(excess, instance, why, observation, draft)
    # 2
    used = {g.index for g in groups}
    missing = observation.wanted.replicas - len(live)
    for made in range(missing):
        blocked = len(draft.blocked)
        creation = _creation(live, observation, held, made)
        more = made + 1 < missing
        index = create_group(creation, draft, used, "scale up", live, more=more)
        if index is None:
            # A wait ends by itself; without a place, only the roll of another group helps.
            if len(draft.blocked) == blocked or len(live) < len(groups):
                return tuple(live)
            break
        used.add(index)
    # 3
    created = len(used) - len(groups)
    if held is None and live and len(live) <= observation.wanted.replicas and not created:
        _roll_some(live, observation, draft, used)
    return tuple(live)


def _creation(
    live: Sequence[GroupView], observation: Observation, held: Hold | None, made: int
) -> Observation:
    """What a missing group is made by, after `made` others: the revision wanted, or a proven one.

    Until a group of the wanted revision serves there is at most one of it. The others are made at
    the revision that most groups serve with, so that lost ones come back. While a rollout is held
    they come back as they were.
    """
    current = [g for g in live if not outdated(g, observation)]
    if len(current) + made >= most_allowed(held, observation):
        before = as_before(live, observation)
        if before is not None:
            return before
    if any(g.serving for g in current) or (not made and not current):
        return observation
    proven = Counter(g.revision for g in live if g.serving and observation.at(g.revision))
    if not proven:
        return observation
    most = min(proven, key=lambda revision: (-proven[revision], revision))
    return replace(observation, wanted=observation.at(most) or observation.wanted)


def _recovering(group: GroupView, observation: Observation, draft: PlanDraft) -> bool:
    """An outdated group that ordinary repair brings back: it counts as one that serves.

    When a substitute has failed too, its revision may be what is wrong, and it counts no more.
    """
    failures = {r.slot: r.failures for r in draft.repairs}
    once = all(failures.get(i.slot, 0) <= 1 for i in group.members)
    return group.has_served and observation.at(group.revision) is not None and once


def _next_excess(
    live: Sequence[GroupView], observation: Observation, draft: PlanDraft, held: Hold | None
) -> GroupView | None:
    """The next group to give up while there are too many, or None.

    Order: outdated ones that do not serve; current ones that do not serve; outdated ones that
    serve; current ones. Among equals one whose drain has begun, then one that does not surely
    serve, then, of those that do not serve, the one with the fewest sound instances, then the
    highest index. While a roll is on, one group too many is the new one, and a serving outdated
    one goes only when as many as wanted serve without it. While it is held, none goes for it.
    """
    wanted = observation.wanted
    if len(live) <= wanted.replicas:
        return None
    sure = sum(1 for g in live if _stands(g, observation))
    surge = 1 if any(outdated(g, observation) for g in live) else 0
    over = len(live) > wanted.replicas + (surge if wanted.replicas else 0)
    if held is not None and held.strict and not over:
        return None
    allowed: list[tuple[bool, bool, bool, bool, int, int, GroupView]] = []
    for group in live:
        old, serves = outdated(group, observation), group.serving
        if not old and not over:
            continue
        surely = group.surely_serving(observation)
        others = sure - _stands(group, observation)
        kept = serves or _recovering(group, observation, draft)
        if old and kept and others < wanted.replicas and not over:
            continue
        begun = any(i.drain_started is not None for i in group.members)
        sound = 0 if serves else len(group.staying)
        allowed.append((serves, not old, not begun, surely, sound, -group.index, group))
    return min(allowed, key=lambda entry: entry[:-1])[-1] if allowed else None


def _roll_some(
    live: list[GroupView], observation: Observation, draft: PlanDraft, used: set[int]
) -> None:
    """Replace outdated groups, at most as many as may be unavailable; takes from `live` what goes.

    It is one until a group of the new revision serves, so a bad revision costs no more.
    """
    wanted = observation.wanted
    current = [g for g in live if not outdated(g, observation)]
    if len(current) == len(live):
        return
    starting = [g for g in current if not g.serving]
    at_once = wanted.rollout.max_unavailable if len(starting) < len(current) else 1
    room = min(at_once - len(starting), most_allowed(None, observation) - len(current))
    if starting and room <= 0:
        draft.reasons.append(
            f"rollout waits until group {starting[0].index} of the new revision serves"
        )
    for _ in range(room):
        rolled = _roll(live, observation, draft, used)
        if rolled is None:
            return
        live.remove(rolled)


def _roll(
    live: Sequence[GroupView], observation: Observation, draft: PlanDraft, used: set[int]
) -> GroupView | None:
    """Replace one outdated group; returns it if it is given up now (delete first)."""
    old = [g for g in live if outdated(g, observation)]
    if not old:
        return None
    victim = min(old, key=lambda g: (g.serving, -g.index))
    rule = observation.wanted.rollout
    full = "rollout.order is DeleteFirst"
    if rule.order != "DeleteFirst":
        refused = _create_first(victim, live, observation, draft, used)
        if refused is None:
            return None
        full = f"no spare devices hold a new one beside it: {refused}"
    if rule.order == "CreateFirst":
        _needs_devices(draft, f"rollout.order is CreateFirst, and {full}")
        return None
    rest = [g for g in live if g is not victim]
    freed = _freed(victim, rest, draft)
    bad = suspects(draft.repairs, observation.now, draft.fabric, observation.bettered)
    fits = find_place(freed, observation.wanted, bad)
    if isinstance(fits, NoFit):
        _needs_devices(draft, f"even without group {victim.index}: {fits.message}")
        return None
    others = any(g.surely_serving(observation) for g in rest)
    serves = victim.serving or _recovering(victim, observation, draft)
    if serves and not others and not rule.allow_outage:
        _needs_devices(
            draft, f"group {victim.index} is the only one that surely serves, and {full}"
        )
        return None
    why = "no spare devices" if rule.order == "Auto" else full
    for instance in victim.members:
        retire(victim, instance, f"new revision, {why}: delete first", observation, draft)
    return victim


def _create_first(
    victim: GroupView,
    live: Sequence[GroupView],
    observation: Observation,
    draft: PlanDraft,
    used: set[int],
) -> str | None:
    """Create a group of the new revision beside `victim`; why not, where no devices hold it.

    None where it is created, or waits for something else than devices.
    """
    attempt = PlanDraft(
        draft.fabric, draft.repairs, claims=list(draft.claims),
        spent=list(draft.spent), members=dict(draft.members),
    )  # fmt: skip
    why = f"new revision, before group {victim.index} goes"
    more = sum(outdated(g, observation) for g in live) > 1
    index = create_group(observation, attempt, used, why, live, more=more)
    if index is not None:
        draft.actions += attempt.actions
        draft.reasons += attempt.reasons
        draft.fabric, draft.claims = attempt.fabric, attempt.claims
        draft.members = attempt.members
        draft.spent = attempt.spent
        draft.inherited += attempt.inherited
        return None
    if not attempt.blocked:
        draft.reasons += attempt.reasons
        draft.waits += attempt.waits
        return None
    return attempt.blocked[0]


def _freed(victim: GroupView, rest: Sequence[GroupView], draft: PlanDraft) -> Fabric:
    """The fabric without `victim`, and without what groups that are gone left behind."""
    return draft.fabric.release(
        Reservation(m.pod, m.node, resource, count)
        for i in victim.members
        for m in i.members
        for resource, count in m.holds.items()
    ).release(reservations(of_gone_groups({g.index for g in rest}, draft)))


def _needs_devices(draft: PlanDraft, why: str) -> None:
    draft.progressing = ConditionState(
        "Progressing", "False", NEEDS_DEVICES, f"the new revision waits: {why}"
    )
    draft.reasons.append(f"rollout waits: {why}")


def _stands(group: GroupView, observation: Observation) -> bool:
    """Whether an outdated group may go in favour of this one, so that the ratio is kept.

    It surely serves, and if it is of the wanted revision, all instances that it has can serve.
    """
    whole = outdated(group, observation) or all(
        group.ready(role) == len(group.of_role(role)) for role in ROLES
    )
    return whole and group.surely_serving(observation)


def _why_removed(group: GroupView, observation: Observation) -> str:
    if outdated(group, observation):
        return f"group {group.index} has an old revision and is replaced"
    return f"{observation.wanted.replicas} P/D groups are wanted"
