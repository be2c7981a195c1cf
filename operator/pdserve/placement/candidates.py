"""Ways to place a whole P/D group that come into question, judged by their true cost.

Phases: 1 the scope: the whole domain, or with Required each part of the level alone; 2 what lets
no KV cross a counted uplink, the cheapest of it; 3 the cheapest of all ways, where those are few;
4 strategies from the closest to the widest, the most promising ones improved by local search. The
work of each phase is bounded, whatever the size of the fabric. Neighbour: `place` chooses.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

from pdserve.placement.capacity import Capacity
from pdserve.placement.cost import Spread, cost_of
from pdserve.placement.exact import best_cells, best_leaf, best_spread
from pdserve.placement.strategies import balanced_cells, by_leaf_room, improve, packed
from pdserve.placement.types import Cost, GroupRequest
from pdserve.topology import Fabric, Path

MAX_PARTS = 8
"""Parts of one level that strategies look at: those with the least room."""
MAX_IMPROVED = 4
"""Spreads of one level that are improved: the cheapest."""
_Part = tuple[Path, tuple[Path, ...]]


@dataclass(frozen=True, slots=True)
class Option:
    """One way, and what it costs."""

    kind: str
    spread: Spread
    cost: Cost


def scopes(fabric: Fabric, request: GroupRequest) -> tuple[_Part, ...]:
    """Parts a group may not leave, each with its leaves: one, the whole domain, if Preferred."""
    if request.mode == "Preferred":
        return (((), tuple(fabric.leaves)),)
    depth = fabric.spec.leaf_depth if request.level is None else fabric.spec.depth_of(request.level)
    assert depth is not None, "level_problem was asked first"  # noqa: S101 - a bug of the caller
    if depth >= fabric.spec.leaf_depth:
        return tuple((leaf, (leaf,)) for leaf in fabric.leaves)
    return tuple((p, leaves) for p, leaves in fabric.parts.items() if len(p) == depth)


def options_for(
    fabric: Fabric, capacity: Capacity, request: GroupRequest, costs: tuple[int, ...]
) -> list[Option]:
    """The ways, in the order in which they were found; none where the group does not fit.

    `costs`: as for `cost.traffic`.
    """
    search = _Search(fabric, capacity, request, costs)
    # 1
    allowed = scopes(fabric, request)
    if allowed and len(allowed[0][0]) == fabric.spec.leaf_depth:
        search.add("one leaf", best_leaf(capacity, (leaf for leaf, _ in allowed), request))
        return search.found
    # 2
    for _, leaves in allowed:
        one, cells = best_cells(capacity, leaves, request)
        search.add("one leaf", one)
        search.add(f"balanced cells in {search.where(cells)}", cells)
    if costs[-1] and search.nothing_crosses():
        return search.found
    # 3
    wide = search.fitting(allowed)
    best = [best_spread(capacity, leaves, request, costs) for _, leaves in wide]
    for spread in best:
        search.add(f"best of all ways in {search.where(spread)}", spread)
    # 4
    if None in best:
        search.by_strategies(len(allowed[0][0]))
    else:
        search.for_comparison(wide)
    return search.found


class _Search:
    def __init__(
        self, fabric: Fabric, capacity: Capacity, request: GroupRequest, costs: tuple[int, ...]
    ) -> None:
        self.fabric, self.capacity, self.request, self.costs = fabric, capacity, request, costs
        self.found: list[Option] = []

    def add(self, kind: str, spread: Spread | None) -> None:
        if spread is not None and all(option.spread != spread for option in self.found):
            self.found.append(Option(kind, spread, self._cost(spread)))

    def nothing_crosses(self) -> bool:
        return any(option.cost.traffic == 0 for option in self.found)

    def where(self, spread: Spread | None) -> str:
        """The innermost part that holds all of it."""
        levels = zip(*(spread or ()), strict=True)
        return self.fabric.label(tuple(v[0] for v in takewhile(lambda v: len({*v}) == 1, levels)))

    def fitting(self, parts: tuple[_Part, ...]) -> list[_Part]:
        """Parts that hold the whole group."""
        asked = self.request.prefill, self.request.decode
        return [part for part in parts if self.capacity.part(*part).fits(*asked)]

    def by_strategies(self, outermost: int) -> None:
        """From the innermost parts outwards, until at some level nothing crosses."""
        for depth in range(self.fabric.spec.leaf_depth - 1, outermost - 1, -1):
            if self.nothing_crosses():
                return
            parts = tuple(x for x in self.fabric.parts.items() if len(x[0]) == depth)
            tightest = sorted(self.fitting(parts), key=lambda x: self.capacity.part(*x).free)
            fitting = sorted(tightest[:MAX_PARTS])
            for path, leaves in fitting:
                spread = balanced_cells(self.capacity, leaves, self.request)
                self.add(f"balanced cells in {self.fabric.label(path)}", spread)
            if not self.nothing_crosses():
                self._improved(fitting)

    def for_comparison(self, parts: list[_Part]) -> None:
        """What strategies alone would choose, so that an answer says why that lost."""
        for path, leaves in parts:
            for kind, spread in self._ways(path, leaves):
                self.add(kind, spread)

    def _improved(self, parts: list[_Part]) -> None:
        raw: list[tuple[Cost, int, str, Spread, tuple[Path, ...]]] = []
        for path, leaves in parts:
            for kind, spread in self._ways(path, leaves):
                if spread is not None:
                    raw.append((self._cost(spread), len(raw), kind, spread, leaves))
        cheapest = sorted(raw, key=lambda way: way[:2])[:MAX_IMPROVED]
        for _, _, kind, spread, leaves in sorted(cheapest, key=lambda way: way[1]):
            self.add(kind, improve(spread, self.capacity, leaves, self.costs))

    def _ways(self, path: Path, leaves: tuple[Path, ...]) -> tuple[tuple[str, Spread | None], ...]:
        name = self.fabric.label(path)
        return (
            (f"leaves of {name} by room", by_leaf_room(self.capacity, leaves, self.request)),
            (f"{name} packed", packed(self.capacity, leaves, self.request)),
        )

    def _cost(self, spread: Spread) -> Cost:
        return cost_of(spread, self.capacity, self.request, self.costs)
