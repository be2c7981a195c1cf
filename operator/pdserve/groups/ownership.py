"""Which places a plan keeps: what a ScenarioGroup owns is conserved while anything lacks a place.

    owned       what its pods hold, and its claims; each pod's place counts once
    spare       owned, and under no instance that stays
    lacking     the slots of all wanted groups, at the revisions in use, without such an instance or
                one that is created in the place of a claim

A plan keeps as many spare places as slots are lacking, and gives up the others. Which place is kept
for which slot is a preference: of the same size, then one that is large enough; of those of the
same slot, else of the same role in the group, of the group, of the role, of any; the newest first.
Where only smaller ones are left, a slot keeps as many as together have what it needs.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

from pdserve.groups.claims import claims_for, newest
from pdserve.groups.naming import free_slots, is_slot_of, slot_range
from pdserve.groups.types import (
    BeginDrain,
    CreateGroup,
    CreateInstance,
    DeletePod,
    DeviceClaim,
    NewPod,
    Observation,
    RoleWanted,
)
from pdserve.groups.view import GroupView, PlanDraft, at_own_revision, leaving, stood_in_for
from pdserve.terms import ROLES, Role
from pdserve.wire.names import instance_name


@dataclass(frozen=True, slots=True)
class _Slot:
    """A slot that lacks an instance."""

    group_index: int
    slot: str
    role: Role
    wanted: RoleWanted

    def alike(self, place: _Place) -> bool:
        """The place is one of an instance of this size."""
        takes = [c.takes for c in place.claims]
        return takes == [self.wanted.takes] * self.wanted.members

    def fits(self, place: _Place) -> bool:
        """Each member finds what it takes."""
        enough = [c for c in place.claims if self._holds_one(c)]
        return len(enough) >= self.wanted.members

    def _holds_one(self, claim: DeviceClaim) -> bool:
        has = dict(claim.takes)
        return all(has.get(resource, 0) >= amount for resource, amount in self.wanted.takes)

    def has_enough(self, claims: Iterable[DeviceClaim]) -> bool:
        """Together they have what its members take."""
        have: Counter[str] = Counter()
        for claim in claims:
            have.update(dict(claim.takes))
        return all(have[r] >= n * self.wanted.members for r, n in self.wanted.takes)


@dataclass(frozen=True, slots=True)
class _Place:
    """What the members of one instance left, or will leave; kept for a slot up to now."""

    claims: tuple[DeviceClaim, ...]

    @property
    def group_index(self) -> int:
        return self.claims[0].group_index

    @property
    def slot(self) -> str:
        return self.claims[0].slot

    @property
    def role(self) -> Role:
        return self.claims[0].role


def kept_claims(
    groups: Sequence[GroupView],
    kept: Sequence[GroupView],
    observation: Observation,
    draft: PlanDraft,
) -> tuple[DeviceClaim, ...]:
    """The claims after this plan, by group and slot; `kept` are the groups that stay.

    Beside the spare places that are kept, each instance that no peer table names has one: after a
    restart no other record would name it if it vanished. Those of pods to be created come from the
    steps that plan them.
    """
    going = {instance_name(a.name) for a in draft.actions if isinstance(a, BeginDrain | DeletePod)}
    spare = _spare(groups, going, observation, draft)
    lacking = _lacking(kept, going, spare, observation, draft) if spare else []
    found = [
        *_of_newcomers(kept, going, observation), *_assigned(lacking, spare), *draft.inherited
    ]  # fmt: skip
    once = {c.pod: c for c in found}
    return tuple(sorted(once.values(), key=lambda c: (c.group_index, c.slot, c.pod)))


def _spare(
    groups: Sequence[GroupView],
    going: set[str],
    observation: Observation,
    draft: PlanDraft,
) -> list[_Place]:
    """Owned places that no instance stands on, the oldest first.

    One that ended and holds nothing has what it is recorded with, or nothing any more.
    """
    members = sorted((i for g in groups for i in g.members), key=lambda i: (i.created, i.name))
    out = [i for i in members if leaving(i) or i.name in going]
    holding = {m.pod for i in out for m in i.members if m.holds}
    known = (c for c in observation.claims if c.pod in holding)
    held = newest(known, (c for i in out for c in claims_for(i) if c.pod in holding))
    found: dict[str, list[DeviceClaim]] = {}
    for claim in [*draft.claims, *held]:
        if claim.node in draft.fabric.nodes:
            found.setdefault(claim.instance, []).append(claim)
    return [_Place(tuple(sorted(claims, key=lambda c: c.pod))) for claims in found.values()]


def _of_newcomers(
    kept: Iterable[GroupView], going: set[str], observation: Observation
) -> list[DeviceClaim]:
    """The claims of members that stay and that no peer table names yet."""
    new = [i for g in kept for i in g.staying if i.name not in going and not g.named(i)]
    names = {i.name for i in new}
    known = (c for c in observation.claims if c.instance in names)
    return newest(known, (c for i in new for c in claims_for(i)))


# --- what lacks a place ------------------------------------------------------------------------


def _lacking(
    kept: Sequence[GroupView],
    going: set[str],
    spare: Sequence[_Place],
    observation: Observation,
    draft: PlanDraft,
) -> list[_Slot]:
    """Slots without an instance: of groups that stay, then of groups that are missing."""
    found: list[_Slot] = []
    for group in kept:
        found += _of_group(group, going, spare, observation, draft)
    created = (a for a in draft.actions if isinstance(a, CreateGroup))
    made = {a.group_index for a in created if _has_claim(a.pods[0], draft)}
    there = {g.index for g in kept} | made
    wanted = observation.wanted
    left = Counter(p.group_index for p in spare if p.group_index not in there)
    fullest = sorted(left, key=lambda index: (-left[index], index))
    free = (k for k in itertools.count() if k not in there and k not in left)
    missing = max(0, wanted.replicas - len(there))
    for index in itertools.islice(itertools.chain(fullest, free), missing):
        for role in ROLES:
            its = wanted.role(role)
            found += [_Slot(index, s, role, its) for s in slot_range(wanted, index, role)]
    return found


def _has_claim(pod: NewPod, draft: PlanDraft) -> bool:
    """It is created in the place of a spent claim. Another one may be refused, so until it is there
    its slot lacks an instance.
    """
    return any(c.pod == pod.name for c in draft.inherited)


def _of_group(
    group: GroupView,
    going: set[str],
    spare: Sequence[_Place],
    observation: Observation,
    draft: PlanDraft,
) -> list[_Slot]:
    own = at_own_revision(group, observation)
    wanted = observation.at(group.revision) if own is None else own.wanted
    wanted = wanted or observation.wanted
    covered = stood_in_for(group, observation, draft.fabric)
    new = [
        a.pod
        for a in draft.actions
        if isinstance(a, CreateInstance)
        and a.pod.group_index == group.index
        and _has_claim(a.pod, draft)
    ]
    stays = [i for i in group.staying if i.name not in going]
    filled = {i.slot for i in stays} | {pod.slot for pod in new}
    found: list[_Slot] = []
    for role in ROLES:
        here = sum(
            1 for i in stays
            if (i.role, i.revision) == (role, wanted.revision) and i.name not in covered
        )  # fmt: skip
        # While an instance has no place, none is kept for a spare.
        spares = group.has_served and not draft.blocked
        count = wanted.kept(role) if spares else wanted.role(role).count
        missing = count - here - sum(pod.role == role for pod in new)
        if missing <= 0:
            continue
        lost = {i.slot for i in group.members if i.role == role}
        lost |= {
            p.slot
            for p in spare
            if (p.group_index, p.role) == (group.index, role)
            and is_slot_of(p.slot, wanted, group.index, role)
        }
        slots = sorted(lost - filled)[:missing]
        taken = filled.union(slots)
        slots += free_slots(wanted, group.index, role, taken, missing - len(slots))
        found += [_Slot(group.index, slot, role, wanted.role(role)) for slot in slots]
    return found


# --- which place for which slot ------------------------------------------------------------------

_KEYS: tuple[Callable[[_Slot | _Place], Hashable], ...] = (
    lambda x: (x.group_index, x.slot),
    lambda x: (x.group_index, x.role),
    lambda x: x.group_index,
    lambda x: x.role,
    lambda _: None,
)
"""What a slot and the place kept for it have in common, the closest first."""
_SIZES: tuple[Callable[[_Slot, _Place], bool], ...] = (_Slot.alike, _Slot.fits, lambda *_: True)
"""How a place suits a slot, the best first."""


def _assigned(lacking: Sequence[_Slot], spare: Sequence[_Place]) -> list[DeviceClaim]:
    """A place for each slot, as long as there are any: the claims, with the slots they are for."""
    left = list(spare)
    found: dict[tuple[int, str], list[DeviceClaim]] = {}
    for suits, key in itertools.product(_SIZES, _KEYS):
        if not left:
            break
        offered: dict[Hashable, list[_Place]] = {}
        for place in left:
            offered.setdefault(key(place), []).append(place)
        for slot in lacking:
            at = slot.group_index, slot.slot
            here = offered.get(key(slot), []) if at not in found else []
            fit = next((p for p in reversed(here) if suits(slot, p)), None)
            if fit is not None:
                here.remove(fit)
                left.remove(fit)
                found[at] = list(fit.claims)
    for key in _KEYS:
        for slot in lacking:
            claims = found.get((slot.group_index, slot.slot), [])
            while claims and not slot.has_enough(claims):
                more = next((p for p in reversed(left) if key(p) == key(slot)), None)
                if more is None:
                    break
                left.remove(more)
                claims += more.claims
    return [
        replace(claim, group_index=slot.group_index, slot=slot.slot, role=slot.role)
        for slot in lacking
        for claim in found.get((slot.group_index, slot.slot), ())
    ]
