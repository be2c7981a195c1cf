"""Room for instances: how many prefills and decodes of given shapes fit a leaf, in O(1).

An instance sits on one node, so room adds up over nodes. Three cases, exact in each:
  apart    the roles use different resources: they never compete;
  nested   one resource, one role's size divides the other's: a big one takes the place of `ratio`
           small ones wherever it goes, so two sums say it all;
  uneven   one resource, sizes like 3 and 2, or nodes that admit one role only: the frontier
           "most decodes beside p prefills" is computed by dynamic programming over the nodes.
Neighbours: `strategies` spreads counts over leaves with it, `packing` picks the nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pdserve.placement.types import GroupRequest, Shape
from pdserve.topology import Fabric, Path

_FRONTIER_CAP = 64
"""Frontiers stop here: no leaf is asked for more instances of one role."""


@dataclass(frozen=True, slots=True)
class NodeRoom:
    """Devices that one node offers to each role (equal numbers of one pool when shared)."""

    name: str
    prefill: int
    decode: int


@dataclass(frozen=True, slots=True)
class Room:
    """What fits a leaf, or several. `prefills` and `decodes` are the most of each alone."""

    prefills: int
    decodes: int
    free: int
    """Devices free, whether or not they add up to whole instances."""
    prefill_size: int = 1
    decode_size: int = 1
    shared: bool = True
    frontier: tuple[int, ...] | None = None
    """Case uneven: most decodes beside p prefills, by p."""

    def most_decodes(self, prefills: int) -> int:
        """How many decodes still fit beside so many prefills; -1 if those alone do not."""
        if prefills > self.prefills:
            return -1
        if self.frontier is not None:
            return self.frontier[prefills] if prefills < len(self.frontier) else -1
        if not self.shared:
            return self.decodes
        if self.prefill_size >= self.decode_size:
            return self.decodes - prefills * (self.prefill_size // self.decode_size)
        ratio = self.decode_size // self.prefill_size
        return min(self.decodes, (self.prefills - prefills) // ratio)

    def fits(self, prefills: int, decodes: int) -> bool:
        """True when so many of both fit together."""
        return decodes <= self.most_decodes(prefills)


def nested(prefill: Shape, decode: Shape) -> bool:
    """One size divides the other."""
    big, small = max(prefill.devices, decode.devices), min(prefill.devices, decode.devices)
    return big % small == 0


class Rooms:
    """Room of every leaf for one pair of shapes, and its nodes."""

    def __init__(self, fabric: Fabric, request: GroupRequest) -> None:
        self.fabric = fabric
        self.prefill, self.decode = request.prefill_shape, request.decode_shape
        self.shared = self.prefill.resource == self.decode.resource
        self.nodes: dict[Path, tuple[NodeRoom, ...]] = {}
        self.rooms: dict[Path, Room] = {}
        self._parts: dict[Path, Room] = {}

    def copy(self, known: Rooms) -> None:
        """Start from what another one counted for the same shapes."""
        self.nodes, self.rooms = dict(known.nodes), dict(known.rooms)
        self._parts = dict(known._parts)

    def fill(self, leaves: Iterable[Path], exclude: frozenset[str] = frozenset()) -> None:
        """Count these leaves (again)."""
        for leaf in leaves:
            nodes = tuple(self._node(n) for n in self.fabric.leaves[leaf] if n not in exclude)
            self._parts = {p: r for p, r in self._parts.items() if p != leaf[: len(p)]}
            self.nodes[leaf] = tuple(n for n in nodes if n.prefill or n.decode)
            self.rooms[leaf] = self.count(self.nodes[leaf])

    def count(self, nodes: Iterable[NodeRoom]) -> Room:
        """Room that these nodes make together."""
        p, d = self.prefill.devices, self.decode.devices
        prefills = decodes = free = 0
        lopsided = False
        found = tuple(nodes)
        for node in found:
            prefills += node.prefill // p
            decodes += node.decode // d
            free += max(node.prefill, node.decode) if self.shared else node.prefill + node.decode
            lopsided = lopsided or (self.shared and node.prefill != node.decode)
        frontier = None
        if self.shared and (lopsided or not nested(self.prefill, self.decode)):
            frontier = _frontier(found, p, d)
        return Room(prefills, decodes, free, p, d, self.shared, frontier)

    def together(self, leaves: Iterable[Path]) -> Room:
        """Room of several leaves as one."""
        total = self.count(())
        for leaf in leaves:
            total = self.join(total, self.rooms[leaf])
        return total

    def part(self, path: Path, leaves: Iterable[Path]) -> Room:
        """Room of the part at `path`, whose leaves these are (remembered)."""
        if path not in self._parts:
            self._parts[path] = self.together(leaves)
        return self._parts[path]

    def join(self, left: Room, right: Room) -> Room:
        """Room of two sets of nodes together."""
        frontier = None
        if left.frontier is not None or right.frontier is not None:
            frontier = _join(_as_frontier(left), _as_frontier(right))
        return Room(
            left.prefills + right.prefills,
            left.decodes + right.decodes,
            left.free + right.free,
            self.prefill.devices,
            self.decode.devices,
            self.shared,
            frontier,
        )

    def _node(self, name: str) -> NodeRoom:
        fabric = self.fabric
        prefill, decode = self.prefill, self.decode
        blocked_p = fabric.blocked(name, prefill.tolerations) or not prefill.reaches(name)
        alike = prefill.tolerations == decode.tolerations and prefill.nodes == decode.nodes
        if self.shared and alike:
            free = 0 if blocked_p else fabric.free(name, self.prefill.resource)
            return NodeRoom(name, free, free)
        blocked_d = fabric.blocked(name, decode.tolerations) or not decode.reaches(name)
        return NodeRoom(
            name,
            0 if blocked_p else fabric.free(name, self.prefill.resource),
            0 if blocked_d else fabric.free(name, self.decode.resource),
        )


def rooms_for(fabric: Fabric, request: GroupRequest) -> Rooms:
    """Count all leaves, reusing what this fabric, or the one it was derived from, knows."""
    key = ("rooms", request.prefill_shape, request.decode_shape)
    base: Rooms | None = fabric.memo.get(key)
    if base is None:
        base = Rooms(fabric, request)
        known: Rooms | None = fabric.parent.memo.get(key) if fabric.parent else None
        if known is None:
            base.fill(fabric.leaves)
        else:
            base.copy(known)
            base.fill(_leaves_of(fabric, fabric.changed))
        fabric.memo[key] = base
    if not request.exclude:
        return base
    narrowed = Rooms(fabric, request)
    narrowed.copy(base)
    narrowed.fill(_leaves_of(fabric, request.exclude), request.exclude)
    return narrowed


def by_room(rooms: Mapping[Path, Room]) -> list[Path]:
    """Leaves from the roomiest; equal ones by path."""
    return sorted(rooms, key=lambda leaf: (-rooms[leaf].prefills - rooms[leaf].decodes, leaf))


def _leaves_of(fabric: Fabric, nodes: Iterable[str]) -> list[Path]:
    return sorted({leaf for n in nodes if (leaf := fabric.leaf(n)) is not None})


def _frontier(nodes: Iterable[NodeRoom], p: int, d: int) -> tuple[int, ...]:
    total: tuple[int, ...] = (0,)
    for node in nodes:
        pool = max(node.prefill, node.decode)
        offers = tuple(
            min(node.decode, pool - count * p) // d for count in range(node.prefill // p + 1)
        )
        total = _join(total, offers)
    return total


def _join(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    best = [-1] * min(len(left) + len(right) - 1, _FRONTIER_CAP + 1)
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            if i + j < len(best) and a >= 0 and b >= 0:
                best[i + j] = max(best[i + j], a + b)
    return tuple(best)


def _as_frontier(room: Room) -> tuple[int, ...]:
    if room.frontier is not None:
        return room.frontier
    return tuple(room.most_decodes(p) for p in range(min(room.prefills, _FRONTIER_CAP) + 1))
