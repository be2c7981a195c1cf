"""Keep a scenario off a single node: what one node's loss, or its drain, may take.

`place` and `place_instance` ask for the place that is closest by topology, and judge it together
with the other P/D groups of the scenario:

  1 both roles of the scenario are never all on one node while another node has room, whatever
    the traffic;
  2 at equal traffic, no node's loss takes the last P/D group that has both roles.

Alternatives of a whole group, in this order: another node for all of it; a part of it moved off
the one node. Of one instance: another node. These alternatives never decide whether there
is a place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pdserve.placement.capacity import capacity_for
from pdserve.placement.cost import cost_of, weights
from pdserve.placement.incremental import place_closest_instance, shared_levels, spread_of
from pdserve.placement.place import place_closest
from pdserve.placement.sites import fatal_nodes, only_node, site_of
from pdserve.placement.types import (
    Assignment,
    Cell,
    GroupRequest,
    InstancePlacement,
    Nodes,
    NoFit,
    PlacedInstance,
    Placement,
    PlacementCandidate,
    Site,
    cell_text,
)
from pdserve.terms import ROLES, Role
from pdserve.topology import Fabric, Path, Reservation


def place(fabric: Fabric, request: GroupRequest) -> Placement | NoFit:
    """Find nodes for all instances of `request`, or none, in view of the groups `beside` it."""
    found = place_closest(fabric, request)
    if isinstance(found, NoFit):
        return found
    sites = (*request.beside, found.site)
    crowded, fatal = only_node(sites), fatal_nodes(request.beside)
    if crowded is not None and request.more and _next_is_elsewhere(fabric, request, found):
        return found
    options = [found]
    if fatal and fatal_nodes(sites):
        elsewhere = place_closest(fabric, replace(request, exclude=request.exclude | fatal))
        if not isinstance(elsewhere, NoFit):
            options.append(elsewhere)
    if crowded is not None and len(options) == 1:
        moved = _moved(fabric, request, found, crowded)
        if moved is not None:
            options.append(moved)

    def rank(k: int) -> tuple[bool, int, bool, int]:
        then = (*request.beside, options[k].site)
        return only_node(then) is not None, options[k].cost.traffic, bool(fatal_nodes(then)), k

    return options[min(range(len(options)), key=rank)]


def place_instance(
    fabric: Fabric,
    request: GroupRequest,
    role: Role,
    members: Sequence[PlacedInstance],
    near: Path | None = None,
) -> InstancePlacement | NoFit:
    """Find a node for one more instance of `role`, in view of the other groups of the scenario.

    Order: off the one node that holds the whole scenario; then as `incremental` says, where rule
    2 comes after the traffic.
    """
    found = place_closest_instance(fabric, request, role, members, near)
    if isinstance(found, NoFit):
        return found

    def sites(option: InstancePlacement) -> tuple[Site, ...]:
        return *request.beside, site_of([*members, PlacedInstance("", role, option.nodes)])

    bad = fatal_nodes(sites(found))
    if not bad:
        return found
    options = [found]
    asked = replace(request, exclude=request.exclude | bad)
    other = place_closest_instance(fabric, asked, role, members, near)
    if not isinstance(other, NoFit):
        options.append(other)

    def rank(k: int) -> tuple[bool, int, int, bool, int]:
        option, then = options[k], sites(options[k])
        shared = shared_levels(option.leaf, near)
        traffic = option.cost.traffic
        return only_node(then) is not None, -shared, traffic, bool(fatal_nodes(then)), k

    return options[min(range(len(options)), key=rank)]


def _next_is_elsewhere(fabric: Fabric, request: GroupRequest, found: Placement) -> bool:
    """The group that follows finds a place that takes the scenario off the node."""
    beside = (*request.beside, found.site)
    following = replace(request, beside=beside, more=False)
    after = place(fabric.reserve(found.reservations), following)
    return isinstance(after, Placement) and only_node((*beside, after.site)) is None


def _moved(fabric: Fabric, request: GroupRequest, found: Placement, node: str) -> Placement | None:
    """The group with a part of it moved off the one node; None: there is no other place.

    Half of each role moves, so that either part has both where there are enough; of a group of
    one and one the decode does, or else the prefill.
    """
    half: dict[Role, int] = {role: request.count(role) // 2 for role in ROLES}
    ways: list[dict[Role, int]] = [half, {"decode": 1}, {"prefill": 1}]
    for way in ways:
        nodes = _with_moved(fabric, request, found, node, way)
        if nodes is not None:
            return _as_placement(fabric, request, found, node, nodes)
    return None


def _with_moved(
    fabric: Fabric, request: GroupRequest, found: Placement, node: str, way: dict[Role, int]
) -> dict[Role, list[Nodes]] | None:
    """Nodes by role when so many of each role leave `node`; None when none finds another."""
    stay = {role: request.count(role) - way.get(role, 0) for role in ROLES}
    nodes = {role: list(found.on(role)[: stay[role]]) for role in ROLES}
    members = [PlacedInstance("", role, its) for role in ROLES for its in nodes[role]]
    fabric = fabric.reserve(_reservations(request, nodes))
    asked = replace(request, exclude=request.exclude | {node})
    moved = False
    for role in ROLES:
        for before in found.on(role)[stay[role] :]:
            other = place_closest_instance(fabric, asked, role, members)
            there = before if isinstance(other, NoFit) else other.nodes
            moved = moved or there != before
            nodes[role].append(there)
            members.append(PlacedInstance("", role, there))
            fabric = fabric.reserve(_reservations(request, {role: [there]}))
    return nodes if moved else None


def _as_placement(
    fabric: Fabric,
    request: GroupRequest,
    found: Placement,
    node: str,
    nodes: dict[Role, list[Nodes]],
) -> Placement:
    assignments = tuple(
        Assignment(role, k, its) for role in ROLES for k, its in enumerate(sorted(nodes[role]))
    )
    spread = spread_of(fabric, [PlacedInstance("", a.role, a.nodes) for a in assignments])
    costs = weights(fabric, request.level if request.mode == "Preferred" else None)
    cost = cost_of(spread, capacity_for(fabric, request), request, costs)
    cells = tuple(Cell(leaf, *spread[leaf]) for leaf in sorted(spread))
    kind = f"apart from {node}"
    others = tuple(
        replace(c, verdict=f"lost: all instances of the scenario on {node}")
        if c.verdict == "won"
        else c
        for c in found.candidates
    )
    told = ", ".join(cell_text(fabric, c) for c in cells)
    lost = found.explanation[0].removesuffix("won") + f"lost: the whole scenario on {node}"
    return Placement(
        assignments=assignments,
        cells=cells,
        cost=cost,
        candidates=(PlacementCandidate(kind, cells, cost, "won"), *others),
        explanation=(f"{kind} [{told}]: {cost}: won", lost, *found.explanation[1:]),
        reservations=_reservations(request, {r: sorted(nodes[r]) for r in ROLES}),
    )


def _reservations(request: GroupRequest, nodes: dict[Role, list[Nodes]]) -> tuple[Reservation, ...]:
    return tuple(
        reservation
        for role, names in nodes.items()
        for k, name in enumerate(names)
        for reservation in request.shape(role).reservations(f"{role}-{k}", name)
    )
