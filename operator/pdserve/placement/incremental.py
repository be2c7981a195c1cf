"""One instance more, or fewer, in a group that runs. What runs is never moved.

Growth puts the new instance where the group's traffic ends lowest, which is where the other role
is in surplus (D where a_u - b_u is most positive). Substitution first looks beside the instance it
stands in for. Removal gives up the instance whose loss costs least, never the last of its role.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from pdserve.placement.candidates import scopes
from pdserve.placement.capacity import capacity_for
from pdserve.placement.cost import Spread, group_slots, traffic, weights
from pdserve.placement.packing import nodes_in_leaf
from pdserve.placement.place import level_problem
from pdserve.placement.refusal import found_in, why_not
from pdserve.placement.sites import only_node, site_of
from pdserve.placement.types import (
    Cost,
    GroupRequest,
    InstancePlacement,
    NoFit,
    PlacedInstance,
    Removal,
    Site,
)
from pdserve.terms import Role
from pdserve.topology import Fabric, Path

_SHOWN = 5


def place_closest_instance(
    fabric: Fabric,
    request: GroupRequest,
    role: Role,
    members: Sequence[PlacedInstance],
    near: Path | None = None,
) -> InstancePlacement | NoFit:
    """Find a node for one more instance of `role` beside `members`, by topology alone.

    Order: with `near` (the leaf of the instance replaced) the deepest part shared with it; then
    traffic, slots lost, leaves used, leftover; then the leaf's path. `request` gives shapes,
    locality and suspects; its counts are the group's wanted size.
    """
    problem = level_problem(fabric, request)
    if problem:
        return NoFit(problem)
    capacity = capacity_for(fabric, request)
    costs = weights(fabric, request.level if request.mode == "Preferred" else None)
    one = (1, 0) if role == "prefill" else (0, 1)
    now = spread_of(fabric, members)
    allowed = _allowed(fabric, request, now)
    used = {(), *(leaf[:depth] for leaf in now for depth in range(1, len(leaf) + 1))}
    known: dict[tuple[object, ...], Cost] = {}
    found: list[tuple[int, Cost, Path]] = []
    for leaf in allowed:
        room = capacity.leaves[leaf]
        if not room.fits(*one):
            continue
        # Leaves with the same room cost the same in the same parts of the group, or beside them.
        home = next(leaf[:depth] for depth in range(len(leaf), -1, -1) if leaf[:depth] in used)
        key = (home, room.prefills, room.decodes, room.free, room.frontier)
        cost = known.get(key)
        if cost is None:
            p, d = now.get(leaf, (0, 0))
            then = {**now, leaf: (p + one[0], d + one[1])}
            cost = known[key] = Cost(
                unplaced=0,
                traffic=traffic(then, costs),
                slots_lost=group_slots(room, request) - group_slots(room, request, *one),
                domains=len(then),
                leftover=room.free - request.shape(role).total,
            )
        found.append((-shared_levels(leaf, near), cost, leaf))
    if not found:
        return _nowhere(fabric, request, role, now, allowed)
    found = heapq.nsmallest(_SHOWN, found)
    _, cost, leaf = found[0]
    taken = nodes_in_leaf(capacity, leaf, *one)
    nodes = (taken[0] + taken[1])[0]
    return InstancePlacement(
        nodes,
        leaf,
        cost,
        tuple(
            f"{fabric.label(other)}{_beside(other, near)}: {c}: {'won' if k == 0 else 'lost'}"
            for k, (_, c, other) in enumerate(found)
        ),
        request.shape(role).reservations(role, nodes),
    )


def choose_removal(
    fabric: Fabric,
    role: Role,
    members: Sequence[PlacedInstance],
    count: int,
    level: str | None = None,
    beside: Sequence[Site] = (),
) -> Removal:
    """Choose up to `count` instances of `role` to give up, one after another.

    Order: not ready first (it serves no request); then one that does not leave all of the scenario
    on one node (`beside`: its other groups); then the least traffic afterwards, the fewest leaves
    used, and the last name. At least one of the role stays, a ready one if there is one.
    """
    left = list(members)
    costs = weights(fabric, level)
    names: list[str] = []
    lines: list[str] = []
    for _ in range(count):
        own = [m for m in left if m.role == role]
        if len(own) <= 1:
            lines.append(f"the last {role} stays")
            break
        judged: list[tuple[bool, bool, int, int, PlacedInstance]] = []
        for member in own:
            others = [m for m in left if m is not member]
            rest, crowded = spread_of(fabric, others), only_node((*beside, site_of(others)))
            cost, used = traffic(rest, costs), len(rest)
            judged.append((member.ready, crowded is not None, cost, used, member))
        least = min(entry[:4] for entry in judged)
        ready, _, cost, used, chosen = max(
            (entry for entry in judged if entry[:4] == least), key=lambda entry: entry[4].name
        )
        lines.append(
            f"{chosen.name}: {'ready' if ready else 'not ready'}, traffic afterwards {cost}, "
            f"leaves {used}: least of {len(own)}"
        )
        names.append(chosen.name)
        left.remove(chosen)
    return Removal(tuple(names), tuple(lines))


def spread_of(fabric: Fabric, members: Sequence[PlacedInstance]) -> Spread:
    """Counts per leaf of instances that exist; those outside the tree are left out."""
    spread: dict[Path, tuple[int, int]] = {}
    for member in members:
        leaf = fabric.leaf(member.nodes[0])
        if leaf is not None:
            p, d = spread.get(leaf, (0, 0))
            spread[leaf] = (p + 1, d) if member.role == "prefill" else (p, d + 1)
    return spread


def _allowed(fabric: Fabric, request: GroupRequest, now: Spread) -> tuple[Path, ...]:
    """Leaves that the locality admits: with Required, those of the part the group is in."""
    parts = scopes(fabric, request)
    if request.mode == "Required" and now:
        home = min(now)
        parts = tuple(x for x in parts if home[: len(x[0])] == x[0])
    return tuple(leaf for _, leaves in parts for leaf in leaves)


def shared_levels(leaf: Path, near: Path | None) -> int:
    """How many outer levels two leaves have in common; 0 where `near` is None."""
    if near is None:
        return 0
    count = 0
    for mine, theirs in zip(leaf, near, strict=False):
        if mine != theirs:
            break
        count += 1
    return count


def _beside(leaf: Path, near: Path | None) -> str:
    if near is None:
        return ""
    return " (same leaf)" if leaf == near else f" ({shared_levels(leaf, near)} levels shared)"


def _nowhere(
    fabric: Fabric, request: GroupRequest, role: Role, now: Spread, allowed: Sequence[Path]
) -> NoFit:
    shape = request.shape(role)
    free = found_in(fabric, request, allowed).free
    enough = found_in(fabric, request, allowed, (role,)).most >= shape.devices
    split = "" if enough else f", none has {shape.devices} together"
    where = "usable nodes"
    if request.mode == "Required" and now:
        where = f"usable nodes of the part the group is in ({fabric.label(min(now))})"
    message = (
        f"no node for one more {role} ({shape.devices_text}): {free} devices "
        f"are free on {where}{split}{why_not(fabric, request, (role,))}"
    )
    return NoFit(message)
