"""The true cost of putting a group's instances into given leaves; judges every candidate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pdserve.placement.capacity import Capacity, Room
from pdserve.placement.types import Cost, GroupRequest
from pdserve.topology import Fabric, Path

Spread = Mapping[Path, tuple[int, int]]
"""Leaf -> (prefills, decodes)."""


def weights(fabric: Fabric, level: str | None = None) -> tuple[int, ...]:
    """Cost of crossing the uplink of a part, by path length from 1 to a leaf's.

    With `level`, crossing parts of levels inside it costs nothing.
    """
    spec = fabric.spec
    depth = spec.depth_of(level) if level is not None else None
    free_below = spec.leaf_depth if depth is None else depth
    return tuple(
        spec.levels[k - 1].hop_cost if k <= free_below else 0 for k in range(1, spec.leaf_depth + 1)
    )


def traffic(spread: Spread, costs: tuple[int, ...]) -> int:
    """Hop-weighted KV across uplinks under local-first forwarding, times n_p * n_d.

    The group's whole KV rate is 1, prefill share a_u = p_u / n_p, decode share b_u = d_u / n_d:
    the uplink of part u carries max(0, a_u - b_u) upwards.
    """
    prefills = sum(p for p, _ in spread.values())
    decodes = sum(d for _, d in spread.values())
    total = 0
    for depth, cost in enumerate(costs, start=1):
        if not cost:
            continue
        surplus: dict[Path, int] = {}
        for leaf, (p, d) in spread.items():
            part = leaf[:depth]
            surplus[part] = surplus.get(part, 0) + p * decodes - d * prefills
        total += cost * sum(s for s in surplus.values() if s > 0)
    return total


class Flows:
    """`traffic` of a spread that changes, move by move."""

    def __init__(self, spread: Spread, costs: tuple[int, ...]) -> None:
        """`costs`: as for `traffic`."""
        self._prefills = sum(p for p, _ in spread.values())
        self._decodes = sum(d for _, d in spread.values())
        self._costs = costs
        self._surplus: dict[Path, int] = {}
        for leaf, (p, d) in spread.items():
            for part, _ in self._above(leaf):
                self._surplus[part] = self._surplus.get(part, 0) + self._share(p, d)
        self.total = traffic(spread, costs)

    def change(self, source: Path, target: Path, counts: tuple[int, int]) -> int:
        """What is added to `total` when so many of both roles go from a leaf to another."""
        share, added = self._share(*counts), 0
        for sign, leaf, other in ((-1, source, target), (1, target, source)):
            for part, cost in self._above(leaf):
                if other[: len(part)] != part:
                    now = self._surplus.get(part, 0)
                    added += cost * (max(0, now + sign * share) - max(0, now))
        return added

    def sends(self, leaf: Path) -> bool:
        """Whether KV leaves this leaf, or a part that it is in."""
        return any(self._surplus.get(part, 0) > 0 for part, _ in self._above(leaf))

    def apply(self, source: Path, target: Path, counts: tuple[int, int]) -> None:
        """Let them go."""
        self.total += self.change(source, target, counts)
        share = self._share(*counts)
        for sign, leaf in ((-1, source), (1, target)):
            for part, _ in self._above(leaf):
                self._surplus[part] = self._surplus.get(part, 0) + sign * share

    def _share(self, prefills: int, decodes: int) -> int:
        return prefills * self._decodes - decodes * self._prefills

    def _above(self, leaf: Path) -> Iterable[tuple[Path, int]]:
        return ((leaf[:k], cost) for k, cost in enumerate(self._costs, start=1) if cost)


def crossing_percent(spread: Spread) -> int:
    """Share of a group's KV that must leave its leaf, in whole percent of 0 to 100, rounded up."""
    prefills = sum(p for p, _ in spread.values())
    decodes = sum(d for _, d in spread.values())
    if not prefills or not decodes:
        return 0
    crossing = sum(max(0, p * decodes - d * prefills) for p, d in spread.values())
    return -(-100 * crossing // (prefills * decodes))


def group_slots(room: Room, request: GroupRequest, prefills: int = 0, decodes: int = 0) -> int:
    """How many whole groups like `request` fit, 0 or more, beside instances already put there.

    `prefills` and `decodes`: how many of those there are.
    """
    low, high = 0, _upper(room, request)
    while low < high:
        middle = (low + high + 1) // 2
        if room.fits(prefills + middle * request.prefill, decodes + middle * request.decode):
            low = middle
        else:
            high = middle - 1
    return low


def cost_of(
    spread: Spread, capacity: Capacity, request: GroupRequest, costs: tuple[int, ...]
) -> Cost:
    """Judge one way to place `request`: its cost, by which ways are compared, the lower the better.

    `costs`: hop cost of each level of the tree, outermost first.
    """
    placed = sum(p + d for p, d in spread.values())
    used = {leaf: counts for leaf, counts in spread.items() if any(counts)}
    lost = leftover = 0
    for leaf, (p, d) in used.items():
        room = capacity.leaves[leaf]
        lost += group_slots(room, request) - group_slots(room, request, p, d)
        leftover += room.free - p * room.prefill_size - d * room.decode_size
    return Cost(
        unplaced=request.prefill + request.decode - placed,
        traffic=traffic(used, costs),
        slots_lost=lost,
        domains=len(used),
        leftover=leftover,
    )


def _upper(room: Room, request: GroupRequest) -> int:
    bounds = []
    if request.prefill:
        bounds.append(room.prefills // request.prefill)
    if request.decode:
        bounds.append(room.decodes // request.decode)
    return min(bounds, default=0)
