"""The best place for one P/D group, by dynamic programming over leaves and pods.

Exact for fabrics of two counted levels, at a cost of leaves x (instances of a role)^4: for small
cases. Costs add up over leaves and pods, and the order by which they are compared (term by term)
is kept by adding, so the best way to put (p, d) instances into some leaves is part of the best way
to put all into all leaves.
"""

from __future__ import annotations

from collections.abc import Mapping

from pdserve.placement.capacity import capacity_for
from pdserve.placement.cost import group_slots, weights
from pdserve.placement.types import Cost, GroupRequest
from pdserve.topology import Fabric, Path

Counts = tuple[int, int]
Terms = tuple[int, int, int, int]
"""Traffic, slots lost, leaves used, leftover."""
Table = Mapping[Counts, Terms]
"""The least cost of putting so many prefills and decodes somewhere."""


def least_cost(fabric: Fabric, request: GroupRequest) -> Cost | None:
    """The cost of the best place, or None where there is none; locality as the request says."""
    capacity = capacity_for(fabric, request)
    depth = fabric.spec.leaf_depth
    costs = weights(fabric, request.level if request.mode == "Preferred" else None)
    scope = 0
    if request.mode == "Required":
        level = depth if request.level is None else fabric.spec.depth_of(request.level)
        scope = min(depth, level if level is not None else depth)
    tables: dict[Path, Table] = {}
    for leaf in fabric.leaves:
        room = capacity.leaves[leaf]
        table: dict[Counts, Terms] = {(0, 0): (0, 0, 0, 0)}
        slots = group_slots(room, request)
        for p in range(request.prefill + 1):
            for d in range(request.decode + 1):
                if (p or d) and room.fits(p, d):
                    lost = slots - group_slots(room, request, p, d)
                    left = room.free - p * room.prefill_size - d * room.decode_size
                    table[p, d] = (0, lost, 1, left)
        tables[leaf] = _crossing(table, costs[depth - 1], request)
    found: list[Terms] = []
    for level in range(depth, -1, -1):
        if level == scope:
            every = (request.prefill, request.decode)
            found += [t[every] for t in tables.values() if every in t]
            break
        above: dict[Path, Table] = {}
        for path, table in tables.items():
            part = path[: level - 1]
            above[part] = _joined(above[part], table, request) if part in above else table
        if level > 1:
            above = {p: _crossing(t, costs[level - 2], request) for p, t in above.items()}
        tables = above
    return Cost(0, *min(found)) if found else None


def _crossing(table: Table, cost: int, request: GroupRequest) -> Table:
    """With the traffic that leaves a part which holds so many of both."""

    def surplus(p: int, d: int) -> int:
        return cost * max(0, p * request.decode - d * request.prefill)

    return {(p, d): (t[0] + surplus(p, d), *t[1:]) for (p, d), t in table.items()}


def _joined(left: Table, right: Table, request: GroupRequest) -> Table:
    best: dict[Counts, Terms] = {}
    for (p, d), mine in left.items():
        for (q, e), theirs in right.items():
            if p + q <= request.prefill and d + e <= request.decode:
                both = tuple(a + b for a, b in zip(mine, theirs, strict=True))
                key = p + q, d + e
                if key not in best or both < best[key]:
                    best[key] = both  # type: ignore[assignment]  # four terms as before
    return best
