"""A whole new P/D group: placed, promised and created together, or not at all (gang)."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from pdserve.groups.claims import (
    after_those_ahead,
    claim_of_new,
    of_fullest,
    of_gone_groups,
    rename,
    unsettled,
    with_lifted,
)
from pdserve.groups.naming import new_pods, slot_range
from pdserve.groups.repairs import Suspects, suspects, waits_until
from pdserve.groups.types import CreateGroup, NewPod, Observation, Wanted
from pdserve.groups.view import GroupView, PlanDraft
from pdserve.placement import NoFit, PlacedInstance, Placement, Site, place
from pdserve.terms import ROLES, Role
from pdserve.topology import Fabric
from pdserve.wire.names import slot_of


def create_group(
    observation: Observation,
    draft: PlanDraft,
    used: Collection[int],
    why: str,
    live: Iterable[GroupView],
    *,
    more: bool = False,
) -> int | None:
    """Create a P/D group under the lowest index without pods; None if it must wait.

    It takes the devices that its index left behind, or a group that is gone (not in `live`), else
    what those leave who wait before it. `more`: another one is created next.

    What keeps it waiting is noted in the draft: no place, or back-off in one of its slots.
    """
    index = next(k for k in range(len(used) + 1) if k not in used)
    pending = _backoff(observation, draft, index)
    if pending > 0:
        draft.reasons.append(f"group {index} waits {pending:.0f} s after repeated faults")
        draft.wait(pending)
        return None
    table = observation.tables.get(index)
    if table is not None and table.instances:
        draft.reasons.append(f"group {index} waits until its former peer table is deleted")
        return None
    wanted = observation.wanted
    bad = suspects(draft.repairs, observation.now, draft.fabric, observation.bettered)
    found: Placement | NoFit | None = None
    beside = draft.beside(wanted.revision, index)

    def find(fabric: Fabric) -> Placement | NoFit:
        return find_place(fabric, wanted, bad, beside, more=more)

    before = list(draft.claims)
    pool = of_gone_groups({g.index for g in live}, draft)
    former = sorted({slot_of(c.pod) for c in pool} & unsettled(observation))
    if former:
        draft.reasons.append(f"group {index} waits until a peer table has dropped {former[0]}")
        return None
    own = tuple(c for c in pool if c.group_index == index)
    for claims in dict.fromkeys(filter(None, (own, of_fullest(pool), pool))):
        found = with_lifted(draft, claims, () if claims is pool else claims, find)
        if isinstance(found, Placement):
            break
    if not isinstance(found, Placement):
        found = find(after_those_ahead(draft.fabric, observation))
    if isinstance(found, NoFit):
        draft.blocked_request = wanted.group_request(bad.barred, beside)
        draft.blocked.append(f"group {index}: {found.message}")
        draft.reasons.append(f"group {index} is not created: {found.message}")
        return None
    pods = _pods(observation, draft, index, found)
    draft.act(CreateGroup(index, pods), f"create group {index} ({why}): {found.explanation[0]}")
    rename(draft)
    draft.promise(found.reservations)
    draft.place(index, wanted.revision, placed(pods))
    if draft.claims != before:
        draft.inherited += tuple(claim_of_new(pod, wanted) for pod in pods)
    return index


def find_place(
    fabric: Fabric,
    wanted: Wanted,
    bad: Suspects,
    beside: tuple[Site, ...] = (),
    *,
    more: bool = False,
) -> Placement | NoFit:
    """A place as far from suspect nodes as there is one."""
    return bad.away_from(
        lambda nodes: place(fabric, wanted.group_request(nodes, beside, more=more))
    )


def placed(pods: Iterable[NewPod]) -> tuple[PlacedInstance, ...]:
    """Instances to be made as placement wants them, by their pods."""
    nodes: dict[tuple[str, Role], list[str]] = {}
    for pod in pods:
        nodes.setdefault((pod.instance, pod.role), []).append(pod.node)
    return tuple(
        PlacedInstance(name, role, tuple(found), ready=False)
        for (name, role), found in nodes.items()
    )


def _pods(
    observation: Observation, draft: PlanDraft, index: int, found: Placement
) -> tuple[NewPod, ...]:
    wanted = observation.wanted
    last = {r.slot: r.last_uid for r in draft.repairs}
    pods: list[NewPod] = []
    for role in ROLES:
        for slot, nodes in zip(slot_range(wanted, index, role), found.on(role), strict=True):
            pods += new_pods(
                slot, role, index, wanted.revision, nodes, draft.fabric, last.get(slot),
                scale_unit=not pods,
            )  # fmt: skip
    return tuple(pods)


def _backoff(observation: Observation, draft: PlanDraft, index: int) -> float:
    wanted = observation.wanted
    slots = {slot for role in ROLES for slot in slot_range(wanted, index, role)}
    mine = (r for r in draft.repairs if r.slot in slots)
    due = (waits_until(r, observation.bettered, draft.fabric) for r in mine)
    until = max(due, default=0.0)
    return until - observation.now
