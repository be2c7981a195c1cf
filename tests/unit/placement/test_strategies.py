"""Each way to spread a group over leaves, asked alone: what it returns, and when nothing."""

from __future__ import annotations

import pytest
from tests.support.builders import fabric, request

from pdserve.placement.capacity import Capacity, capacity_for
from pdserve.placement.cost import cost_of, group_slots, traffic
from pdserve.placement.frontier import join
from pdserve.placement.strategies import balanced_cells, by_leaf_room, improve, packed
from pdserve.placement.types import Cost, GroupRequest
from pdserve.topology import Path

COSTS = (3, 1)
Spread = dict[str, tuple[int, int]]


def drawn(**leaves: str) -> str:
    """`drawn(a="8 8", b="4")`: leaves of one pod with nodes of so many free devices."""
    return "\n".join(
        f"p1 {leaf}  " + " ".join(f"{leaf}{k}:{free}" for k, free in enumerate(nodes.split()))
        for leaf, nodes in leaves.items()
    )


def counted(drawing: str, asked: GroupRequest) -> tuple[Capacity, list[Path]]:
    tree = fabric(drawing)
    return capacity_for(tree, asked), list(tree.leaves)


def short(spread: object) -> Spread | None:
    assert spread is None or isinstance(spread, dict)
    return None if spread is None else {leaf[-1]: counts for leaf, counts in spread.items()}


CELLS: list[tuple[str, str, GroupRequest, Spread | None]] = [
    ("as few leaves as possible", drawn(a="8 8", b="8 8 8 8 8 8", c="8 8"), request("3P3D"),
     {"b": (3, 3)}),
    ("the last cells where they fit best", drawn(a="8 8 8 8", b="8 8 8", c="8 8"),
     request("3P3D"), {"a": (2, 2), "c": (1, 1)}),
    ("of leaves for as many cells the one with less left over",
     drawn(a="8 8 8 8", b="8 8 8", c="8 8 4"), request("3P3D"), {"a": (2, 2), "c": (1, 1)}),
    ("of equal leaves by path", drawn(b="8 8", a="8 8", c="8 8"), request("2P2D"),
     {"a": (1, 1), "b": (1, 1)}),
    ("the smallest whole ratio", drawn(a="8 8 8", b="8 8 8", c="8 8 8 8 8"), request("4P2D"),
     {"a": (2, 1), "b": (2, 1)}),
    ("no leaf without a whole cell", drawn(a="8 8 8 8", b="8 8", c="8"), request("3P3D"),
     {"a": (2, 2), "b": (1, 1)}),
    ("too little room", drawn(a="8 8 8", b="8"), request("2P2D"), None),
    ("counts with no common ratio", drawn(a="8 8 8 8 8"), request("3P2D"), None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("drawing", "asked", "want"), [c[1:] for c in CELLS], ids=[c[0] for c in CELLS]
)
def test_balanced_cells(drawing: str, asked: GroupRequest, want: Spread | None) -> None:
    capacity, leaves = counted(drawing, asked)
    for order in (leaves, leaves[::-1]):
        assert short(balanced_cells(capacity, order, asked)) == want


PACKED: list[tuple[str, str, GroupRequest, Spread | None]] = [
    ("as many prefills as the rest allows, leaf by leaf", drawn(a="8 8", b="8"), request("1P2D"),
     {"a": (1, 1), "b": (0, 1)}),
    ("a leaf leaves room for what fits nowhere else", drawn(a="8", b="4"), request("1P1D", 4, 8),
     {"a": (0, 1), "b": (1, 0)}),
    ("and takes the prefill that fits nowhere else", drawn(a="8", b="4"), request("1P1D", 8, 4),
     {"a": (1, 0), "b": (0, 1)}),
    ("nothing where nothing is needed", drawn(a="8 8", b="8 8"), request("1P1D"), {"a": (1, 1)}),
    ("sizes that do not divide", drawn(a="8", b="5"), request("2P3D", 3, 2),
     {"a": (2, 1), "b": (0, 2)}),
    ("one device too few", drawn(a="8", b="3"), request("2P3D", 3, 2), None),
    ("many small instances in one leaf", drawn(a="80", b="8"), request("70P18D", 1),
     {"a": (70, 10), "b": (0, 8)}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("drawing", "asked", "want"), [p[1:] for p in PACKED], ids=[p[0] for p in PACKED]
)
def test_packed_finds_a_place_whenever_there_is_one(
    drawing: str, asked: GroupRequest, want: Spread | None
) -> None:
    capacity, leaves = counted(drawing, asked)
    for order in (leaves, leaves[::-1]):
        assert short(packed(capacity, order, asked)) == want


ROOM: list[tuple[str, str, GroupRequest, Spread | None]] = [
    ("as much as matches, then the rest", drawn(a="8 8 8 8 8 8", b="8 8 8"), request("2P6D"),
     {"a": (2, 4), "b": (0, 2)}),
    ("no more decodes than their share", drawn(a="8 8 8 8 8 8", b="8 8 8 8 8"), request("3P3D"),
     {"a": (3, 3)}),
    ("what matches nowhere goes where it fits", drawn(a="8 8", b="4", c="4"),
     request("1P3D", 8, 4), {"a": (1, 2), "b": (0, 1)}),
    ("the rest into the leaves used already", drawn(a="8 8 8 8 8", b="8"), request("1P4D"),
     {"a": (1, 4)}),
    ("what matches in a leaf goes there before the rest", drawn(a="4 4 4 4 4 4 4", b="8 8"),
     request("1P1D", 4, 8), {"b": (1, 1)}),
    ("what only `packed` finds", drawn(a="4 4", b="8"), request("2P1D", 4, 8), None),
    ("too little", drawn(a="8 8", b="4"), request("2P1D"), None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("drawing", "asked", "want"), [r[1:] for r in ROOM], ids=[r[0] for r in ROOM]
)
def test_leaves_by_room(drawing: str, asked: GroupRequest, want: Spread | None) -> None:
    capacity, leaves = counted(drawing, asked)
    for order in (leaves, leaves[::-1]):
        assert short(by_leaf_room(capacity, order, asked)) == want


TWO_PODS = "p1 a  n1:8 n2:8 n3:8\np1 b  m1:8 m2:8\np2 c  k1:8 k2:8"
BETTER: list[tuple[str, str, Spread, Spread]] = [
    ("of moves as good the first leaf gives", TWO_PODS, {"a": (1, 0), "c": (0, 1)}, {"c": (1, 1)}),
    ("where that has no room the other", "p1 a  n1:8 n2:8\np2 c  k1:8",
     {"a": (1, 0), "c": (0, 1)}, {"a": (1, 1)}),
    ("the best move, not the first", "p1 a  n1:8\np1 b  m1:8 m2:8\np2 c  k1:8 k2:8",
     {"a": (1, 0), "c": (0, 1)}, {"c": (1, 1)}),
    ("two change places", "p1 a  n1:8 n2:8\np2 c  k1:8 k2:8", {"a": (2, 0), "c": (0, 2)},
     {"a": (1, 1), "c": (1, 1)}),
    ("several steps", "p1 a  n1:8 n2:8 n3:8 n4:8\np2 c  k1:8 k2:8 k3:8",
     {"a": (0, 3), "c": (3, 0)}, {"a": (2, 2), "c": (1, 1)}),
    ("to a leaf that was not used", "p1 a  n1:8\np1 b  m1:8\np2 c  k1:8",
     {"a": (1, 0), "c": (0, 1)}, {"a": (1, 0), "b": (0, 1)}),
    ("nothing moves where nothing crosses", TWO_PODS, {"a": (1, 1)}, {"a": (1, 1)}),
    ("nothing moves where it does not help", "p1 a  n1:8\np2 c  k1:8 k2:0/8",
     {"a": (1, 0), "c": (0, 1)}, {"a": (1, 0), "c": (0, 1)}),
    ("nor for as much", "p1 a  n1:8\np1 b  m1:8\np1 c  k1:8",
     {"a": (1, 0), "c": (0, 1)}, {"a": (1, 0), "c": (0, 1)}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("drawing", "spread", "want"), [b[1:] for b in BETTER], ids=[b[0] for b in BETTER]
)
def test_a_spread_is_improved_step_by_step(drawing: str, spread: Spread, want: Spread) -> None:
    asked = request("2P2D")
    capacity, leaves = counted(drawing, asked)
    paths = {leaf[-1]: leaf for leaf in leaves}
    before = {paths[leaf]: counts for leaf, counts in spread.items()}
    for order in (leaves, leaves[::-1]):
        found = improve(before, capacity, order, COSTS)
        assert short(dict(found)) == want
        assert traffic(found, COSTS) <= traffic(before, COSTS)


@pytest.mark.parametrize(
    ("spread", "want"),
    [
        ({"a": (1, 1)}, Cost(0, 0, 1, 1, 8)),
        ({"a": (1, 0), "c": (0, 1)}, Cost(0, 4, 1, 2, 24)),
        ({"c": (1, 1), "a": (0, 0)}, Cost(0, 0, 1, 1, 0)),
        ({"b": (1, 0)}, Cost(1, 0, 1, 1, 8)),
    ],
    ids=["together", "apart", "leaves without any do not count", "one has no node"],
)
def test_what_a_spread_costs(spread: Spread, want: Cost) -> None:
    asked = request("1P1D")
    capacity, leaves = counted(TWO_PODS, asked)
    paths = {leaf[-1]: leaf for leaf in leaves}
    found = cost_of({paths[leaf]: x for leaf, x in spread.items()}, capacity, asked, COSTS)
    assert found == want


@pytest.mark.parametrize(
    ("counts", "beside", "want"),
    [("1P1D", (0, 0), 2), ("1P1D", (1, 0), 2), ("1P1D", (1, 1), 1), ("1P1D", (5, 0), 0),
     ("2P1D", (0, 0), 1), ("3P0D", (0, 0), 1), ("0P2D", (0, 0), 2), ("0P0D", (0, 0), 0)],
)  # fmt: skip
def test_how_many_whole_groups_fit_a_leaf(counts: str, beside: tuple[int, int], want: int) -> None:
    asked = request(counts)
    capacity, (leaf,) = counted(drawn(a="8 8 8 8 8"), asked)
    assert group_slots(capacity.leaves[leaf], asked, *beside) == want


@pytest.mark.parametrize(
    ("left", "right", "want"),
    [
        ((2, 1, 0), (0,), (2, 1, 0)),
        ((1, 0), (1, 0), (2, 1, 0)),
        ((4, 1), (3, 3), (7, 7, 4)),
        ((2,), (3,), (5,)),
    ],
)
def test_frontiers_of_two_sets_of_nodes_join(
    left: tuple[int, ...], right: tuple[int, ...], want: tuple[int, ...]
) -> None:
    assert join(left, right) == join(right, left) == want


def test_frontiers_end_at_as_many_instances_as_a_group_may_have() -> None:
    line = tuple(range(40, -1, -1))
    assert join(line, line) == tuple(range(80, 15, -1))
