"""How others would spread a P/D group over leaves, as their pages document it.

Each policy gets the room of every leaf and answers with counts per leaf; nodes inside a leaf are
then chosen alike for all. `pack`, `spread` and `random_leaf` place instance by instance as a
scheduler's scores do (MostAllocated, LeastAllocated, none). The others:

- Kueue TAS, preferred topology (KEP-2724): prefills and decodes are two PodSets, each placed
  alone. The lowest level at which one domain holds the PodSet, there the domain with least room
  that holds it (BestFit); inside, the fewest children, the last of them by best fit.
- Volcano, soft networkTopology (HyperNode tiers): from the lowest tier on, the HyperNode that
  holds the whole job and is fullest afterwards; inside, pods one by one onto the fullest.
- Grove, `pack.preferred` (by KAI): as one gang; from the lowest level on, the domain with the
  highest share requested; inside, clique by clique onto its children, the fullest first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence

from pdserve.placement.capacity import Capacity
from pdserve.placement.types import GroupRequest
from pdserve.topology import Fabric, Path

Counts = tuple[int, int]
Policy = Callable[[Fabric, Capacity, GroupRequest, random.Random], Mapping[Path, Counts] | None]
Key = Callable[[Path], object]
ROLES = ((1, 0), (0, 1))


class _Leaves:
    """Room that is left while instances of a group are put down."""

    def __init__(self, capacity: Capacity, request: GroupRequest) -> None:
        self._rooms = capacity.leaves
        self.request = request
        self.put: dict[Path, Counts] = {}

    def fits(self, leaf: Path, p: int, d: int) -> bool:
        have = self.put.get(leaf, (0, 0))
        return self._rooms[leaf].fits(have[0] + p, have[1] + d)

    def free(self, leaf: Path) -> int:
        room, (p, d) = self._rooms[leaf], self.put.get(leaf, (0, 0))
        return room.free - p * room.prefill_size - d * room.decode_size

    def add(self, leaf: Path, p: int, d: int) -> None:
        have = self.put.get(leaf, (0, 0))
        self.put[leaf] = have[0] + p, have[1] + d

    def most(self, leaf: Path, one: Counts, wanted: int) -> int:
        """How many more of one role the leaf holds, up to `wanted`."""
        low, high = 0, wanted
        while low < high:
            middle = (low + high + 1) // 2
            if self.fits(leaf, one[0] * middle, one[1] * middle):
                low = middle
            else:
                high = middle - 1
        return low


def _one_by_one(leaves: _Leaves, allowed: Sequence[Path], key: Key) -> Mapping[Path, Counts] | None:
    """Prefill after prefill, then decode after decode, each to the first leaf by `key`."""
    request = leaves.request
    for one, count in zip(ROLES, (request.prefill, request.decode), strict=True):
        for _ in range(count):
            able = [leaf for leaf in allowed if leaves.fits(leaf, *one)]
            if not able:
                return None
            leaves.add(min(able, key=lambda leaf: (key(leaf), leaf)), *one)  # type: ignore[type-var]  # numbers each
    return leaves.put


def pack(
    fabric: Fabric, capacity: Capacity, request: GroupRequest, _rng: random.Random
) -> Mapping[Path, Counts] | None:
    """Each instance to the fullest leaf that has room."""
    leaves = _Leaves(capacity, request)
    return _one_by_one(leaves, tuple(fabric.leaves), leaves.free)


def spread(
    fabric: Fabric, capacity: Capacity, request: GroupRequest, _rng: random.Random
) -> Mapping[Path, Counts] | None:
    """Each instance to the emptiest leaf."""
    leaves = _Leaves(capacity, request)
    return _one_by_one(leaves, tuple(fabric.leaves), lambda leaf: -leaves.free(leaf))


def random_leaf(
    fabric: Fabric, capacity: Capacity, request: GroupRequest, rng: random.Random
) -> Mapping[Path, Counts] | None:
    """Each instance to any leaf that has room."""
    leaves = _Leaves(capacity, request)
    return _one_by_one(leaves, tuple(fabric.leaves), lambda _leaf: rng.random())


def kueue(
    fabric: Fabric, capacity: Capacity, request: GroupRequest, _rng: random.Random
) -> Mapping[Path, Counts] | None:
    """See the module."""
    leaves = _Leaves(capacity, request)
    for one, count in zip(ROLES, (request.prefill, request.decode), strict=True):
        room = {leaf: leaves.most(leaf, one, 10**6) for leaf in fabric.leaves}
        chosen = tuple(fabric.leaves)
        for level in _levels(fabric):
            able = [(sum(room[x] for x in part), part) for part in level]
            able = [entry for entry in able if entry[0] >= count]
            if able:
                chosen = min(able)[1]
                break
        left = count
        for leaf in _fewest(room, chosen, count):
            taken = min(left, room[leaf])
            leaves.add(leaf, one[0] * taken, one[1] * taken)
            left -= taken
        if left:
            return None
    return leaves.put


def volcano(
    fabric: Fabric, capacity: Capacity, request: GroupRequest, _rng: random.Random
) -> Mapping[Path, Counts] | None:
    """See the module."""
    return _tiers(fabric, capacity, request)


def grove(
    fabric: Fabric, capacity: Capacity, request: GroupRequest, _rng: random.Random
) -> Mapping[Path, Counts] | None:
    """See the module."""
    wanted = request.prefill, request.decode
    for level in _levels(fabric):
        able = [x for x in level if capacity.together(x).fits(*wanted)]
        for part in sorted(able, key=lambda x: (sum(capacity.leaves[u].free for u in x), x)):
            leaves = _Leaves(capacity, request)
            for one, count in zip(ROLES, wanted, strict=True):
                left = count
                for leaf in sorted(part, key=lambda u: (leaves.free(u), u)):
                    taken = leaves.most(leaf, one, left)
                    leaves.add(leaf, one[0] * taken, one[1] * taken)
                    left -= taken
                if left:
                    break
            else:
                return {u: c for u, c in leaves.put.items() if any(c)}
    return None


def _tiers(
    fabric: Fabric, capacity: Capacity, request: GroupRequest
) -> Mapping[Path, Counts] | None:
    for level in _levels(fabric):
        able = [x for x in level if capacity.together(x).fits(request.prefill, request.decode)]
        for part in sorted(able, key=lambda x: (sum(capacity.leaves[u].free for u in x), x)):
            leaves = _Leaves(capacity, request)
            found = _one_by_one(leaves, part, leaves.free)
            if found is not None:
                return found
    return None


def _levels(fabric: Fabric) -> Iterable[list[tuple[Path, ...]]]:
    """The leaves of each part, level by level from the innermost."""
    yield [(leaf,) for leaf in fabric.leaves]
    for depth in range(fabric.spec.leaf_depth - 1, -1, -1):
        yield [leaves for part, leaves in fabric.parts.items() if len(part) == depth]


def _fewest(room: Mapping[Path, int], leaves: Iterable[Path], count: int) -> list[Path]:
    """As few leaves as hold so many: the roomiest first, the last one by best fit."""
    left, chosen = count, []
    order = sorted(leaves, key=lambda leaf: (-room[leaf], leaf))
    while left > 0 and order:
        enough = [leaf for leaf in order if room[leaf] >= left]
        best = min(enough, key=lambda leaf: (room[leaf], leaf)) if enough else order[0]
        chosen.append(best)
        order.remove(best)
        left -= room[best]
    return chosen


POLICIES: Mapping[str, Policy] = {
    "pack": pack,
    "spread": spread,
    "random": random_leaf,
    "Kueue TAS": kueue,
    "Volcano tiers": volcano,
    "Grove packing": grove,
}
