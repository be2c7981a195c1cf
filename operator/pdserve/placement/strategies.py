"""Ways to spread a group's instances over leaves; each returns counts per leaf, or nothing.

`candidates` runs them from the closest to the widest and judges each by its true cost (`cost`):
balanced cells, i.e. the same P:D ratio in every leaf used, inside one upper
part; leaves by room inside one upper part; and `packed`, which ignores locality and therefore
finds a place whenever there is one. All are deterministic: leaves in `capacity.by_room` order.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import gcd

from pdserve.placement.capacity import Capacity, Room, by_room
from pdserve.placement.cost import Flows, Spread, group_slots
from pdserve.placement.types import GroupRequest
from pdserve.topology import Path

_IMPROVE_ROUNDS = 64
_IMPROVE_LEAVES = 12
_IMPROVE_MOVES = 2000


def balanced_cells(
    capacity: Capacity, leaves: Iterable[Path], request: GroupRequest
) -> Spread | None:
    """Whole cells of the smallest equal ratio over as few leaves as possible; the last best fit."""
    cells = gcd(request.prefill, request.decode)
    if cells < 2:
        return None
    p, d = request.prefill // cells, request.decode // cells
    cell = GroupRequest(p, d, request.prefill_shape, request.decode_shape)
    held = {leaf: min(cells, group_slots(capacity.leaves[leaf], cell)) for leaf in leaves}
    spread: dict[Path, tuple[int, int]] = {}
    left = cells
    order = sorted((leaf for leaf in held if held[leaf]), key=lambda u: (-held[u], u))
    while left and order:
        enough = [u for u in order if held[u] >= left]
        # Best fit for what remains, else the leaf that takes most of it.
        chosen = (
            min(enough, key=lambda u: (held[u], capacity.leaves[u].free, u)) if enough else order[0]
        )
        taken = min(left, held[chosen])
        spread[chosen] = (taken * p, taken * d)
        left -= taken
        order.remove(chosen)
    return None if left else spread


def by_leaf_room(
    capacity: Capacity, leaves: Iterable[Path], request: GroupRequest
) -> Spread | None:
    """From the roomiest leaf on: as much matched P:D as fits in each, then the rest anywhere."""
    chosen = {leaf: capacity.leaves[leaf] for leaf in leaves}
    spread: dict[Path, tuple[int, int]] = {}
    left = (request.prefill, request.decode)
    order = by_room(chosen)
    for leaf in order:
        if not any(left):
            break
        p, d = _matched(chosen[leaf], left, request)
        if p or d:
            spread[leaf] = (p, d)
            left = (left[0] - p, left[1] - d)
    for leaf in order:
        if not any(left):
            break
        p, d = spread.get(leaf, (0, 0))
        more_p, more_d = _most(chosen[leaf], (p, d), left)
        spread[leaf] = (p + more_p, d + more_d)
        left = (left[0] - more_p, left[1] - more_d)
    return None if any(left) else {leaf: counts for leaf, counts in spread.items() if any(counts)}


def packed(capacity: Capacity, leaves: Iterable[Path], request: GroupRequest) -> Spread | None:
    """Places everything whenever it fits at all: a leaf's share keeps the rest of them feasible."""
    order = sorted(leaves)
    behind: list[Room] = [capacity.together(())]
    for leaf in reversed(order):
        behind.append(capacity.join(behind[-1], capacity.leaves[leaf]))
    behind.reverse()
    if not behind[0].fits(request.prefill, request.decode):
        return None
    spread: dict[Path, tuple[int, int]] = {}
    p, d = request.prefill, request.decode
    for k, leaf in enumerate(order):
        room, rest = capacity.leaves[leaf], behind[k + 1]
        for mine in range(min(p, room.prefills), -1, -1):
            most = min(d, room.most_decodes(mine))
            if most >= 0 and rest.fits(p - mine, d - most):
                spread[leaf] = (mine, most)
                p, d = p - mine, d - most
                break
    return {leaf: counts for leaf, counts in spread.items() if any(counts)}


def improve(
    spread: Spread, capacity: Capacity, leaves: Iterable[Path], costs: tuple[int, ...]
) -> Spread:
    """Local search: move one instance, or swap two, while that lowers the traffic.

    Bounded: the leaves used and the roomiest others, at most `_IMPROVE_ROUNDS` steps, and no
    further step once `_IMPROVE_MOVES` moves were judged; each step takes the best move, the first
    in order among equals. What a move saves is found from the parts that it leaves and enters.
    """
    order = by_room({leaf: capacity.leaves[leaf] for leaf in leaves})
    around = sorted({*spread, *order[:_IMPROVE_LEAVES]})
    best, flows = dict(spread), Flows(spread, costs)
    judged = 0
    for _ in range(_IMPROVE_ROUNDS):
        if not flows.total or judged > _IMPROVE_MOVES:
            break
        saved, chosen = 0, None
        for move in _moves(best, around, capacity, flows):
            judged += 1
            less = -flows.change(*move)
            if less > saved:
                saved, chosen = less, move
        if chosen is None:
            break
        u, v, (p, d) = chosen
        flows.apply(*chosen)
        (pu, du), (pv, dv) = best[u], best.get(v, (0, 0))
        best[u], best[v] = (pu - p, du - d), (pv + p, dv + d)
    return {leaf: counts for leaf, counts in best.items() if any(counts)}


_STEPS = ((1, 0), (0, 1), (1, -1), (-1, 1))
"""What leaf u gives to leaf v: a prefill, a decode, or one of each role in exchange."""


def _moves(
    spread: dict[Path, tuple[int, int]], around: list[Path], capacity: Capacity, flows: Flows
) -> Iterable[tuple[Path, Path, tuple[int, int]]]:
    """Moves that may save: prefills leave, or decodes come, where KV leaves."""
    sends = {leaf: flows.sends(leaf) for leaf in around}
    for u in sorted(spread):
        for v in around:
            if u == v or not (sends[u] or sends[v]):
                continue
            (pu, du), (pv, dv) = spread[u], spread.get(v, (0, 0))
            for p, d in _STEPS:
                if not sends[u if p > d else v]:
                    continue
                mine, theirs = (pu - p, du - d), (pv + p, dv + d)
                if min(*mine, *theirs) < 0:
                    continue
                if capacity.leaves[u].fits(*mine) and capacity.leaves[v].fits(*theirs):
                    yield u, v, (p, d)


def _matched(room: Room, left: tuple[int, int], request: GroupRequest) -> tuple[int, int]:
    """The most of the group's KV that can stay in this leaf, with the fewest prefills for it."""
    best, counts = 0, (0, 0)
    for p in range(1, min(left[0], room.prefills) + 1):
        # More decodes than their share of these prefills would only be unmatched.
        fair = -(-p * request.decode // request.prefill)
        d = min(left[1], room.most_decodes(p), fair)
        if d < 0:
            break
        matched = min(p * request.decode, d * request.prefill)
        if matched > best:
            best, counts = matched, (p, d)
    return counts


def _most(room: Room, have: tuple[int, int], left: tuple[int, int]) -> tuple[int, int]:
    """As many of what is left as still fit beside `have`."""
    best = (0, 0)
    for p in range(left[0] + 1):
        d = min(left[1], room.most_decodes(have[0] + p) - have[1])
        if d < 0:
            break
        if p + d > sum(best):
            best = (p, d)
    return best
