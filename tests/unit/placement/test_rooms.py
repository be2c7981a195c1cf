"""Counting room and spreading counts over leaves: what is remembered, and the order of choices."""

from __future__ import annotations

import pytest
from tests.support.builders import RESOURCE, fabric, request

from pdserve.placement import InstancePlacement, NoFit, PlacedInstance, place, place_instance
from pdserve.placement.capacity import capacity_for
from pdserve.placement.exact import best_leaf
from pdserve.placement.strategies import by_leaf_room
from pdserve.topology import Fabric, Path, Reservation

TREE = """p1 a  n1:8 n2:8
          p1 b  m1:8
          p2 c  k1:8 k2:8"""


def leaves_of(tree: Fabric, part: Path) -> tuple[Path, ...]:
    return tuple(leaf for leaf in tree.leaves if leaf[: len(part)] == part)


@pytest.mark.parametrize(("part", "want"), [((), (5, 4)), (("p1",), (3, 2)), (("p2",), (2, 2))])
def test_the_room_of_a_part_follows_what_is_taken_in_it(part: Path, want: tuple[int, int]) -> None:
    asked, tree = request("1P1D"), fabric(TREE)
    before = capacity_for(tree, asked)
    assert before.part(part, leaves_of(tree, part)).prefills == want[0]
    taken = tree.reserve([Reservation("x", "n1", RESOURCE, 8)])
    after = capacity_for(taken, asked)
    assert after.part(part, leaves_of(taken, part)).prefills == want[1]
    assert before.part(part, leaves_of(tree, part)).prefills == want[0]


def test_the_room_of_other_parts_is_remembered() -> None:
    asked, tree = request("1P1D"), fabric(TREE)
    other = leaves_of(tree, ("p2",))
    known = capacity_for(tree, asked).part(("p2",), other)
    taken = tree.reserve([Reservation("x", "n1", RESOURCE, 8)])
    assert capacity_for(taken, asked).part(("p2",), other) is known


@pytest.mark.parametrize(
    ("drawing", "want"),
    [
        ("p1 a  n1:8 n2:8 n3:8\np1 b  m1:8 m2:8\np1 c  k1:8", "b"),
        ("p1 a  n1:8 n2:8 n3:8\np1 b  m1:8\np1 c  k1:8 k2:8", "c"),
        ("p1 b  m1:8 m2:8\np1 a  n1:8 n2:8", "a"),
        ("p1 a  n1:8\np1 b  m1:8", None),
    ],
    ids=["the tightest that holds all", "wherever it is drawn", "as tight: by path", "none"],
)
def test_one_leaf_is_the_tightest(drawing: str, want: str | None) -> None:
    tree = fabric(drawing)
    for leaves in (tuple(tree.leaves), tuple(tree.leaves)[::-1]):
        found = best_leaf(capacity_for(tree, request("1P1D")), leaves, request("1P1D"))
        assert (None if found is None else next(iter(found))[-1]) == want


@pytest.mark.parametrize(
    ("counts", "nodes", "rest", "want"),
    [
        ("2P2D", 3, 1, {"a": (1, 2), "b": (1, 0)}),
        ("2P4D", 4, 2, {"a": (1, 3), "b": (1, 1)}),
        ("4P2D", 4, 2, {"a": (3, 1), "b": (1, 1)}),
        ("3P3D", 5, 1, {"a": (2, 3), "b": (1, 0)}),
        ("1P1D", 2, 1, {"a": (1, 1)}),
        ("2P2D", 2, 1, None),
    ],
)
def test_the_roomiest_leaf_first_takes_what_matches_with_the_fewest_prefills(
    counts: str, nodes: int, rest: int, want: dict[str, tuple[int, int]] | None
) -> None:
    here = " ".join(f"n{k}:8" for k in range(nodes))
    there = " ".join(f"m{k}:8" for k in range(rest))
    tree, asked = fabric(f"p1 a  {here}\np1 b  {there}"), request(counts)
    spread = by_leaf_room(capacity_for(tree, asked), tree.leaves, asked)
    assert (None if spread is None else {leaf[-1]: x for leaf, x in spread.items()}) == want


GROWTH = [
    (
        "no whole group's room is lost, though the leaf is not the tightest",
        "p1 a  n1:8 n2:8\np1 b  m1:8 m2:8 m3:8\np2 z  z1:0/8",
        "b",
    ),
    ("the tightest", "p1 a  n1:8 n2:8 n3:8\np1 b  m1:8\np2 z  z1:0/8", "b"),
    ("as tight: by path", "p1 b  m1:8\np1 a  n1:8\np2 z  z1:0/8", "a"),
]


@pytest.mark.parametrize(
    ("drawing", "want"), [row[1:] for row in GROWTH], ids=[row[0] for row in GROWTH]
)
def test_where_one_more_decode_goes_when_the_traffic_is_the_same(drawing: str, want: str) -> None:
    there = [PlacedInstance("prefill-0", "prefill", ("z1",))]
    found = place_instance(fabric(drawing), request("1P1D"), "decode", there)
    assert isinstance(found, InstancePlacement)
    assert found.leaf[-1] == want


def test_growth_inside_a_required_part_goes_where_the_least_crosses_leaves() -> None:
    """Though that takes the room of a whole group there and none in the other leaf."""
    tree = fabric("p1 a  n1:8\np1 b  m1:0/8 m2:8 m3:8")
    there = [PlacedInstance("prefill-0", "prefill", ("m1",))]
    asked = request("1P1D", mode="Required", level="pod")
    found = place_instance(tree, asked, "decode", there)
    assert isinstance(found, InstancePlacement)
    assert found.leaf[-1] == "b"


def test_growth_stays_in_the_leaves_used_when_crossing_them_is_free() -> None:
    tree = fabric("p1 a  n1:8\np1 b  m1:0/8 m2:0/8 m3:8 m4:8")
    there = [
        PlacedInstance("prefill-0", "prefill", ("m1",)),
        PlacedInstance("decode-0", "decode", ("m2",)),
    ]
    found = place_instance(tree, request("3P3D", level="pod"), "decode", there)
    assert isinstance(found, InstancePlacement)
    assert found.leaf[-1] == "b"


def test_a_refusal_names_the_suspects() -> None:
    tree = fabric("p1 a  n1:8 n2:8 n3:8!NotReady")
    for refused in (
        place(tree, request("1P1D", exclude=["n1"])),
        place_instance(tree, request("1P1D", exclude=["n1", "n2"]), "decode", []),
    ):
        assert isinstance(refused, NoFit)
        assert "(suspect after a fault)" in refused.message
        assert "1 (NotReady)" in refused.message
