"""Orders that choices end in: leaves by room, closeness to what is replaced."""

from __future__ import annotations

import pytest
from tests.support.builders import RESOURCE, fabric, request

from pdserve.placement import InstancePlacement, place_instance
from pdserve.placement.capacity import by_room, capacity_for
from pdserve.placement.incremental import shared_levels
from pdserve.placement.refusal import why_not
from pdserve.placement.types import GroupRequest, Shape
from pdserve.topology import Reservation
from pdserve.topology.requests import port_keys

A = ("p1", "a")


@pytest.mark.parametrize(
    ("leaf", "near", "want"),
    [
        (A, A, 2),
        (A, ("p1", "b"), 1),
        (A, ("p2", "b"), 0),
        (A, ("p2", "a"), 0),
        (A, None, 0),
    ],
    ids=["the same", "one pod", "nothing", "an inner name alone is nothing", "nothing is replaced"],
)
def test_how_many_levels_are_shared(
    leaf: tuple[str, ...], near: tuple[str, ...] | None, want: int
) -> None:
    assert shared_levels(leaf, near) == want


def test_what_is_replaced_is_named_in_the_explanation() -> None:
    tree = fabric("p1 a  n1:8\np1 b  m1:8\np2 c  k1:8")
    found = place_instance(tree, request("1P1D"), "decode", [], A)
    assert isinstance(found, InstancePlacement)
    assert [line.partition(":")[0] for line in found.explanation] == [
        "a (same leaf)",
        "b (1 levels shared)",
        "c (0 levels shared)",
    ]
    assert [line.rpartition(": ")[2] for line in found.explanation] == ["won", "lost", "lost"]


@pytest.mark.parametrize(
    ("drawing", "want"),
    [
        ("p1 a  n1:8 n2:8\np1 b  m1:4 m2:4 m3:4 m4:4 m5:4 m6:4 m7:4", "ba"),
        ("p1 a  n1:8 n2:8\np1 b  m1:4 m2:4 m3:4", "ab"),
        ("p1 b  n1:8\np1 a  m1:8", "ab"),
    ],
    ids=["more in sum", "fewer in sum", "as many: by path"],
)
def test_leaves_come_from_the_roomiest(drawing: str, want: str) -> None:
    known = capacity_for(fabric(drawing), request("1P1D", 8, 4))
    assert "".join(leaf[-1] for leaf in by_room(known.leaves)) == want


@pytest.mark.parametrize(
    ("taken", "want"),
    [
        ([], ""),
        (["n1"], "; host port 80/TCP: 1 of 2 nodes have it taken"),
        (["n1", "n2"], "; host port 80/TCP: 2 of 2 nodes have it taken"),
    ],
    ids=["on none", "on one", "on both"],
)
def test_a_host_port_is_reported_where_it_is_taken(taken: list[str], want: str) -> None:
    keys = port_keys("TCP", 80, "")
    held = [Reservation("x", n, key, 1) for n in taken for key in keys]
    tree = fabric("p1 a  n1:8 n2:8").reserve(held)
    shape = Shape(RESOURCE, 1, requests=tuple((key, 1) for key in keys))
    assert why_not(tree, GroupRequest(1, 1, shape, shape), ("prefill",)) == want
