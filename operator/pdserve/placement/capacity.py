"""Room for instances: how many prefills and decodes of given shapes fit a leaf, in O(1).

A member of an instance sits on one node, so room for members adds up over the nodes of a leaf. An
instance sits in one leaf, so room for instances of several members is counted leaf by leaf, from
that for members, and adds up over leaves. Three cases for members, exact in each:
  apart    the roles use different resources: they never compete;
  nested   one resource, one role's size divides the other's: a big one takes the place of `ratio`
           small ones wherever it goes, so two sums say it all;
  uneven   one resource, sizes like 3 and 2, or nodes that admit one role only, or on which
           something else than devices runs out first: the frontier "most decodes beside p prefills"
           is computed by dynamic programming over the nodes.
Neighbours: `beside` counts what is no device, `strategies` spreads counts over leaves, `packing`
picks the nodes.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace

from pdserve.placement.beside import Beside, Offer
from pdserve.placement.frontier import FRONTIER_CAP, join
from pdserve.placement.types import GroupRequest, Shape
from pdserve.topology import Fabric, Path, Tree
from pdserve.topology.fabric import MAX_CHANGED
from pdserve.topology.per_leaf import FEW


@dataclass(frozen=True, slots=True)
class NodeRoom:
    """Devices that one node offers to each role (equal numbers of one pool when shared).

    Where something else runs out first: as many as can be used.
    """

    name: str
    prefill: int
    decode: int
    frontier: tuple[int, ...] | None = None
    """Most decodes beside p prefills, by p, where the devices alone would not say it."""


@dataclass(frozen=True, slots=True)
class Room:
    """What fits a leaf, or several. `prefills` and `decodes` are the most of each alone.

    Counts are of instances, sizes of whole ones.
    """

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


@dataclass(frozen=True, slots=True)
class Rooms:
    """What a `Capacity` counted, and the tree in which it did: all that the next one needs.

    Leaves that are not in it were not counted yet.
    """

    tree: Tree
    nodes: dict[Path, tuple[NodeRoom, ...]]
    leaves: dict[Path, Room]
    parts: dict[Path, Room]


class Capacity:
    """Room of every leaf for one pair of shapes, and its nodes."""

    def __init__(self, fabric: Fabric, request: GroupRequest) -> None:
        self.fabric = fabric
        self.prefill, self.decode = request.prefill_shape, request.decode_shape
        self.shared = self.prefill.resource == self.decode.resource
        self._beside = Beside.of(self.prefill, self.decode)
        self.nodes: dict[Path, tuple[NodeRoom, ...]] = {}
        self.leaves: dict[Path, Room] = {}
        self._parts: dict[Path, Room] = {}
        self.exclude: frozenset[str] = frozenset()
        self._before: dict[Path, tuple[NodeRoom, ...]] = {}
        """Nodes of leaves to be counted anew, as another one counted them."""
        self._changed: frozenset[str] = frozenset()
        """Nodes that are to be counted anew in such leaves."""

    def rooms(self) -> Rooms:
        """What was counted, without the fabric."""
        return Rooms(self.fabric.tree, self.nodes, self.leaves, self._parts)

    def share(self, known: Rooms) -> None:
        """Take over what was counted for the same shapes and nodes, to be read and not changed."""
        self.nodes, self.leaves, self._parts = known.nodes, known.leaves, known.parts

    def follow(self, known: Rooms, changed: Iterable[str]) -> None:
        """Count as another one did for the same shapes, but anew where nodes changed or moved."""
        there = self.fabric.leaves
        self.fill(leaf for leaf in self.recall(known, changed) if leaf in there)

    def recall(self, known: Rooms, changed: Iterable[str]) -> list[Path]:
        """Take over what another one counted, but not where nodes changed or moved: those leaves.

        They are in no particular tree.
        """
        self.nodes, self.leaves = dict(known.nodes), dict(known.leaves)
        self._parts = dict(known.parts)
        names = self._changed = frozenset(changed)
        found = sorted({*_leaves_of(known.tree, names), *_leaves_of(self.fabric.tree, names)})
        for leaf in found:
            self._forget_parts(leaf)
            self.leaves.pop(leaf, None)
            if (before := self.nodes.pop(leaf, None)) is not None:
                self._before[leaf] = before
        return found

    def fill(self, leaves: Iterable[Path]) -> None:
        """Count these leaves."""
        for leaf in leaves:
            before = self._before.pop(leaf, None)
            if before is None:
                nodes = [self._node(name) for name in self.fabric.leaves[leaf]]
            else:
                nodes = self._again(leaf, before)
            self._forget_parts(leaf)
            self.nodes[leaf] = tuple(n for n in nodes if n.prefill or n.decode)
            self.leaves[leaf] = self.count(self.nodes[leaf])

    def _again(self, leaf: Path, before: tuple[NodeRoom, ...]) -> list[NodeRoom]:
        """Nodes of a leaf of which another one counted those that did not change."""
        known, changed = {n.name: n for n in before}, self._changed
        return [
            self._node(name) if name in changed else known[name]
            for name in self.fabric.leaves[leaf]
            if name in changed or name in known  # others have no room
        ]

    def leave_out(self, exclude: frozenset[str]) -> None:
        """Count as if these nodes were not there."""
        self.exclude |= exclude
        for leaf in _leaves_of(self.fabric.tree, exclude):
            self._forget_parts(leaf)
            self.nodes[leaf] = tuple(n for n in self.nodes[leaf] if n.name not in exclude)
            self.leaves[leaf] = self.count(self.nodes[leaf])

    def _forget_parts(self, leaf: Path) -> None:
        for depth in range(len(leaf) + 1):
            self._parts.pop(leaf[:depth], None)

    def count(self, nodes: Iterable[NodeRoom]) -> Room:
        """Room for instances that these nodes of one leaf make together."""
        room = self.count_members(nodes)
        p, d = self.prefill.members, self.decode.members
        if p == d == 1:
            return room
        frontier = tuple(
            most // d
            for n in range(min(room.prefills // p, FRONTIER_CAP) + 1)
            if (most := room.most_decodes(n * p)) >= 0
        )
        return replace(
            room,
            prefills=len(frontier) - 1,
            decodes=room.decodes // d,
            prefill_size=self.prefill.total,
            decode_size=self.decode.total,
            frontier=frontier,
        )

    def count_members(self, nodes: Iterable[NodeRoom]) -> Room:
        """Room for members of instances that these nodes make together."""
        p, d = self.prefill.devices, self.decode.devices
        prefills = decodes = free = 0
        uneven = self.shared and not nested(self.prefill, self.decode)
        found = tuple(nodes)
        for node in found:
            prefills += node.prefill // p
            decodes += node.decode // d
            free += max(node.prefill, node.decode) if self.shared else node.prefill + node.decode
            lopsided = self.shared and node.prefill != node.decode
            uneven = uneven or lopsided or node.frontier is not None
        frontier = None
        if uneven:
            alone: tuple[int, ...] = (0,)
            frontier = functools.reduce(join, map(self.offers, found), alone)
        return Room(prefills, decodes, free, p, d, self.shared, frontier)

    def uneven(self, leaf: Path) -> bool:
        """Whether sums do not say what members fit the leaf, so that its nodes are searched."""
        one = self.prefill.members == self.decode.members == 1
        room = self.leaves[leaf] if one else self.count_members(self.nodes[leaf])
        return room.frontier is not None

    def together(self, leaves: Iterable[Path]) -> Room:
        """Room of several leaves as one."""
        found = [self.leaves[leaf] for leaf in leaves]
        total = self.count(())
        if total.frontier is None and all(room.frontier is None for room in found):
            return replace(
                total,
                prefills=sum(room.prefills for room in found),
                decodes=sum(room.decodes for room in found),
                free=sum(room.free for room in found),
            )
        return functools.reduce(self.join, found, total)

    def part(self, path: Path, leaves: Iterable[Path]) -> Room:
        """Room of the part at `path`, whose leaves these are (remembered)."""
        if path not in self._parts:
            self._parts[path] = self.together(leaves)
        return self._parts[path]

    def join(self, left: Room, right: Room) -> Room:
        """Room of two sets of nodes together."""
        frontier = None
        if left.frontier is not None or right.frontier is not None:
            frontier = join(_as_frontier(left), _as_frontier(right))
        return Room(
            left.prefills + right.prefills,
            left.decodes + right.decodes,
            left.free + right.free,
            self.prefill.total,
            self.decode.total,
            self.shared,
            frontier,
        )

    def offers(self, node: NodeRoom) -> tuple[int, ...]:
        """Most members of decodes beside p members of prefills on one node, by p."""
        if node.frontier is not None:
            return node.frontier
        return self._offer(node.prefill, node.decode).frontier()

    def _offer(self, prefill: int, decode: int) -> Offer:
        return Offer(prefill, decode, (self.prefill.devices, self.decode.devices), self.shared)

    def _node(self, name: str) -> NodeRoom:
        fabric = self.fabric
        prefill, decode = self.prefill, self.decode
        free_p = fabric.free(name, prefill.resource) if self.admits(name, prefill) else 0
        alike = prefill.tolerations == decode.tolerations and prefill.nodes == decode.nodes
        if self.shared and alike and prefill.selector == decode.selector:
            free_d = free_p
        else:
            free_d = fabric.free(name, decode.resource) if self.admits(name, decode) else 0
        offer = self._offer(free_p, free_d)
        caps = self._beside.caps(fabric, name, offer) if free_p or free_d else None
        if caps is None:
            return NodeRoom(name, free_p, free_d)
        return self._capped(name, caps.frontier(offer.frontier()))

    def admits(self, name: str, shape: Shape) -> bool:
        """Whether the node may have such an instance, whatever is free there."""
        if not shape.reaches(name) or self.fabric.blocked(name, shape.tolerations):
            return False
        return shape.selects(self.fabric.nodes[name])

    def _capped(self, name: str, frontier: tuple[int, ...]) -> NodeRoom:
        """The node as if it had only the devices that can be used, if that says it all."""
        p, d = self.prefill.devices, self.decode.devices
        if self.shared:
            used = max(n * p + most * d for n, most in enumerate(frontier))
            plain = self._offer(used, used)
        else:
            plain = self._offer((len(frontier) - 1) * p, frontier[0] * d)
        if plain.frontier() == frontier:
            return NodeRoom(name, plain.prefill, plain.decode)
        return NodeRoom(name, (len(frontier) - 1) * p, frontier[0] * d, frontier)


def capacity_for(fabric: Fabric, request: GroupRequest) -> Capacity:
    """Count all leaves, reusing what this fabric, or the one it was derived from, knows."""
    base = _counted(fabric, request)
    if not request.exclude:
        return base
    narrowed = Capacity(fabric, request)
    narrowed.follow(base.rooms(), ())
    narrowed.leave_out(request.exclude)
    return narrowed


def count_some(fabric: Fabric, request: GroupRequest, most: int) -> bool:
    """Count up to `most` leaves that were not counted yet; True when there was none, at no cost.

    So that a caller can let others run meanwhile: all leaves of ten thousand nodes take 50 ms.
    What was counted goes over to fabrics that follow this one, which the caller may ask instead.
    Where all leaves were counted and few nodes changed since, nothing is done.
    """
    key = _key(request)
    known = fabric.memo.get(key)
    if isinstance(known, _Counted) and known.whole and len(known.changed) <= FEW:
        return True
    capacity = Capacity(fabric, request)
    if isinstance(known, _Counted):
        capacity.recall(known.rooms, known.changed)
    missing = [leaf for leaf in fabric.leaves if leaf not in capacity.leaves]
    capacity.fill(missing[:most])
    fabric.remember(key, _Counted(capacity.rooms()))
    return False


@dataclass(frozen=True, slots=True)
class _Counted:
    """What a fabric's memo knows for one pair of shapes.

    It holds no fabric: one that its own memo held would stay, with its ten thousand nodes, until
    the garbage collector looks for cycles, which takes the longer the more of them there are.
    """

    rooms: Rooms
    changed: frozenset[str] = frozenset()
    """Nodes that differ from those that were counted."""

    @property
    def whole(self) -> bool:
        """All leaves were counted once."""
        return len(self.rooms.leaves) == len(self.rooms.tree.leaves)

    def after(self, changed: frozenset[str]) -> _Counted | None:
        """See `topology.fabric.Derived`: counted anew when asked for, and where it must be."""
        both = self.changed | changed
        return _Counted(self.rooms, both) if len(both) <= MAX_CHANGED else None


def _counted(fabric: Fabric, request: GroupRequest) -> Capacity:
    """Phases: 1 look for a fabric that is counted, from this one up to the one it was derived from
    at first; 2 count that one if none is; 3 count what changed, down to this one. What is derived
    from any of them later finds it counted.
    """
    key = _key(request)
    # 1
    derived: list[Fabric] = []
    source = fabric
    while key not in source.memo and source.parent is not None:
        derived.append(source)
        source = source.parent
    # 2
    known = source.memo.get(key)
    capacity = Capacity(source, request)
    if isinstance(known, _Counted) and known.whole and not known.changed:
        capacity.share(known.rooms)
    else:
        if isinstance(known, _Counted):
            capacity.follow(known.rooms, known.changed)
        if len(capacity.leaves) < len(source.leaves):
            capacity.fill([leaf for leaf in source.leaves if leaf not in capacity.leaves])
        source.remember(key, _Counted(capacity.rooms()))
    # 3
    for below in reversed(derived):
        found = Capacity(below, request)
        found.follow(capacity.rooms(), below.changed)
        below.remember(key, _Counted(found.rooms()))
        capacity = found
    return capacity


def _key(request: GroupRequest) -> Hashable:
    return "capacity", request.prefill_shape, request.decode_shape


def by_room(leaves: Mapping[Path, Room]) -> list[Path]:
    """Leaves from the roomiest; equal ones by path."""
    return sorted(leaves, key=lambda leaf: (-leaves[leaf].prefills - leaves[leaf].decodes, leaf))


def _leaves_of(tree: Tree, nodes: Iterable[str]) -> list[Path]:
    return sorted({leaf for n in nodes if (leaf := tree.leaf(n)) is not None})


def _as_frontier(room: Room) -> tuple[int, ...]:
    if room.frontier is not None:
        return room.frontier
    return tuple(room.most_decodes(p) for p in range(min(room.prefills, FRONTIER_CAP) + 1))
