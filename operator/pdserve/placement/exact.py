"""The cheapest ways of all, by dynamic programming: whole cells over leaves, and any small spread.

`best_cells` looks among spreads that let no KV leave a leaf: whole cells of the group's smallest
ratio. `best_spread` looks among all spreads, where there are few enough. Both minimise the terms of
`Cost` one after the other, which adding over leaves keeps in order: the best way to fill some
leaves is part of the best way to fill all. Of leaves alike in cost only as many are looked at as
can be used: any other could be exchanged for one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import gcd

from pdserve.placement.capacity import Capacity, Room
from pdserve.placement.cost import Spread, group_slots
from pdserve.placement.types import GroupRequest
from pdserve.topology import Path

MAX_CELLS = 8
"""More cells are taken several at a time."""
MAX_WORK = 12_000
"""Pairs of partial spreads that `best_spread` compares at most: some milliseconds."""
Counts = tuple[int, int]
_Terms = tuple[int, int, int, int]
"""Traffic, slots lost, leaves used, leftover."""
_Table = dict[Counts, tuple[_Terms, tuple[tuple[Path, Counts], ...]]]
"""By counts of both roles: the least cost of putting so many into some leaves, and how."""


def best_leaf(capacity: Capacity, leaves: Iterable[Path], request: GroupRequest) -> Spread | None:
    """One leaf for the whole group: fewest slots lost, then the tightest, then the first by path.

    None where no leaf has room for it.
    """
    every = request.prefill, request.decode
    return _cheapest(_chosen(_alike(capacity, leaves, every), [every], request, 1), every)


def best_cells(
    capacity: Capacity, leaves: Iterable[Path], request: GroupRequest
) -> tuple[Spread | None, Spread | None]:
    """`best_leaf`, and whole cells, each in one leaf: fewest slots lost, then leaves used, then
    devices left over.

    None where they do not fit: then KV has to leave some leaf, or there is no place.
    """
    cells = gcd(request.prefill, request.decode)
    units = max(n for n in range(1, min(cells, MAX_CELLS) + 1) if cells % n == 0)
    p, d = request.prefill // units, request.decode // units
    choices = [(n * p, n * d) for n in range(1, units + 1)]
    found = _chosen(_alike(capacity, leaves, (p, d)), choices, request, units)
    one = _cheapest(found, choices[-1])
    if units == 1:
        return one, one
    table: list[tuple[_Terms, tuple[tuple[Path, Counts], ...]] | None] = [((0, 0, 0, 0), ())]
    table += [None] * units
    for leaf in sorted(found):
        terms = found[leaf]
        for total in range(units, 0, -1):
            for n in range(1, total + 1):
                before, mine = table[total - n], terms.get(choices[n - 1])
                if before is None or mine is None:
                    continue
                cost, known = _plus(before[0], mine), table[total]
                if known is None or cost < known[0]:
                    table[total] = cost, (*before[1], (leaf, choices[n - 1]))
    last = table[units]
    return one, None if last is None else dict(last[1])


def best_spread(
    capacity: Capacity, leaves: Sequence[Path], request: GroupRequest, costs: tuple[int, ...]
) -> Spread | None:
    """The cheapest spread of all; None where there is none, or too many ways to look at.

    `costs`: as for `cost.traffic`. Phases: 1 the leaves of each innermost part that come into
    question; 2 those together; 3 outwards, part by part.
    """
    wanted = request.prefill, request.decode
    every = [(p, d) for p in range(wanted[0] + 1) for d in range(wanted[1] + 1) if p or d]
    depth = len(costs)
    # A quarter of all pairs of counts adds up to no more than wanted.
    most = 4 * MAX_WORK // (len(every) + 1) ** 2
    # 1
    homes: dict[Path, list[Path]] = {}
    for leaf in leaves:
        room = capacity.leaves[leaf]
        if room.prefills or room.decodes:
            homes.setdefault(leaf[: depth - 1], []).append(leaf)
    if sum(min(len(inside), sum(wanted)) for inside in homes.values()) > most:
        return None
    chosen = {
        home: _chosen(_alike(capacity, inside, (0, 0)), every, request, sum(wanted))
        for home, inside in homes.items()
    }
    if sum(map(len, chosen.values())) > most:
        return None
    # 2
    tables: dict[Path, _Table] = {}
    for home, found in chosen.items():
        for leaf in sorted(found):
            own: _Table = {(0, 0): ((0, 0, 0, 0), ())}
            for counts, terms in found[leaf].items():
                own[counts] = _with_traffic(terms, counts, costs[-1], request), ((leaf, counts),)
            tables[home] = _joined(tables[home], own, wanted) if home in tables else own
    # 3
    for level in range(depth - 1, 0, -1):
        above: dict[Path, _Table] = {}
        for path, table in sorted(tables.items()):
            crossing: _Table = {
                counts: (_with_traffic(terms, counts, costs[level - 1], request), how)
                for counts, (terms, how) in table.items()
            }
            part = path[: level - 1]
            above[part] = _joined(above[part], crossing, wanted) if part in above else crossing
        tables = above
    best = tables.get((), {}).get(wanted)
    return None if best is None else dict(best[1])


def _cheapest(found: Mapping[Path, Mapping[Counts, _Terms]], counts: Counts) -> Spread | None:
    able = [(terms[counts], leaf) for leaf, terms in found.items() if counts in terms]
    return {min(able)[1]: counts} if able else None


def _alike(
    capacity: Capacity, leaves: Iterable[Path], least: Counts
) -> dict[tuple[object, ...], tuple[Room, list[Path]]]:
    """Leaves with room for so many at least, by all that a cost depends on."""
    found: dict[tuple[object, ...], tuple[Room, list[Path]]] = {}
    for leaf in leaves:
        room = capacity.leaves[leaf]
        if room.fits(*least):
            key = (room.prefills, room.decodes, room.free, room.frontier)
            found.setdefault(key, (room, []))[1].append(leaf)
    return found


def _chosen(
    alike: Mapping[tuple[object, ...], tuple[Room, list[Path]]],
    choices: Sequence[Counts],
    request: GroupRequest,
    most: int,
) -> dict[Path, Mapping[Counts, _Terms]]:
    """The leaves that come into question, where at most so many are used, and their costs."""
    tables = [
        ({c: t for c in choices if (t := _terms(room, c, request)) is not None}, sorted(leaves))
        for room, leaves in alike.values()
    ]
    found: dict[Path, Mapping[Counts, _Terms]] = {}
    for counts in choices:
        left = most
        able = [entry for entry in tables if counts in entry[0]]
        for terms, leaves in sorted(able, key=lambda entry: (entry[0][counts], entry[1])):
            for leaf in leaves[:left]:
                found[leaf] = terms
            left -= len(leaves)
            if left <= 0:
                break
    return found


def _terms(room: Room, counts: Counts, request: GroupRequest) -> _Terms | None:
    """What it costs that a leaf takes so many, traffic left out; None: it has no room."""
    if not room.fits(*counts):
        return None
    lost = group_slots(room, request) - group_slots(room, request, *counts)
    leftover = room.free - counts[0] * room.prefill_size - counts[1] * room.decode_size
    return 0, lost, 1, leftover


def _with_traffic(terms: _Terms, counts: Counts, cost: int, request: GroupRequest) -> _Terms:
    """With the KV that leaves a part which holds so many."""
    surplus = max(0, counts[0] * request.decode - counts[1] * request.prefill)
    return terms[0] + cost * surplus, *terms[1:]


def _joined(left: _Table, right: _Table, wanted: Counts) -> _Table:
    best = dict(left)
    for (p, d), (mine, how) in left.items():
        for (q, e), (theirs, more) in right.items():
            key = p + q, d + e
            if key[0] <= wanted[0] and key[1] <= wanted[1]:
                cost, known = _plus(mine, theirs), best.get(key)
                if known is None or cost < known[0]:
                    best[key] = cost, how + more
    return best


def _plus(one: _Terms, other: _Terms) -> _Terms:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3]
