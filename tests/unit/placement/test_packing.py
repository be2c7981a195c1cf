"""Which nodes of a leaf its instances take: best fit, in turns, whole nodes first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.builders import RESOURCE, fabric, request

from pdserve.placement import GroupRequest, Shape
from pdserve.placement.capacity import NodeRoom, capacity_for
from pdserve.placement.packing import nodes_in_leaf
from pdserve.topology import Toleration
from pdserve.topology.affinity import Requirement

LEAF = ("p1", "a")


def nodes_of(nodes: str, asked: GroupRequest) -> str:
    """`P:n1 P:n2 D:n1` for nodes drawn as `n1:8 n2:8`."""
    capacity = capacity_for(fabric(f"p1 a  {nodes}"), asked)
    found = nodes_in_leaf(capacity, LEAF, asked.prefill, asked.decode)
    return " ".join(
        f"{role}:{'+'.join(its)}" for role, every in zip("PD", found, strict=True) for its in every
    )


def of_members(
    counts: str, size: int, prefill: int, decode: int, decode_size: int | None = None
) -> GroupRequest:
    asked = request(counts, size, decode_size)
    return replace(
        asked,
        prefill_shape=replace(asked.prefill_shape, members=prefill),
        decode_shape=replace(asked.decode_shape, members=decode),
    )


PACKED = [
    ("the fullest that has room", "n1:8 n2:4 n3:2", request("1P0D", 4), "P:n2"),
    ("of equal ones by name", "n2:4 n1:4", request("1P0D", 4), "P:n1"),
    ("roles in turns, so that nodes get both", "n1:2 n2:2", request("2P2D", 1),
     "P:n1 P:n2 D:n1 D:n2"),
    ("in proportion where counts differ", "n1:3 n2:3", request("2P4D", 1),
     "P:n1 P:n2 D:n1 D:n1 D:n2 D:n2"),
    ("roles of different size in turns", "n1:4 n2:4", request("1P2D", 4, 2), "P:n2 D:n1 D:n1"),
    ("the larger first where turns do not fit", "n1:6 n2:3 n3:8",
     of_members("1P1D", 2, 2, 2, 6), "P:n3+n2 D:n1+n3"),
    ("whichever role that is", "n1:6 n2:3 n3:8", of_members("1P1D", 6, 2, 2, 2),
     "P:n1+n3 D:n3+n2"),
    ("sizes that do not divide", "n1:8 n2:5", request("3P2D", 3, 2), "P:n1 P:n1 P:n2 D:n1 D:n2"),
    ("as few prefills as possible to the last node", "n1:6 n2:6", request("2P3D", 3, 2),
     "P:n1 P:n1 D:n2 D:n2 D:n2"),
    ("members on one node where one has room for all", "n1:2 n2:4 n3:2",
     of_members("1P1D", 2, 2, 1), "P:n2+n2 D:n1"),
    ("else on several", "n1:2 n2:2 n3:2", of_members("1P1D", 2, 2, 1), "P:n1+n2 D:n3"),
    ("more members on one node than on others", "n1:4 n2:2", of_members("1P0D", 2, 3, 1),
     "P:n2+n1+n1"),
    ("members of sizes that do not divide", "n1:8 n2:5",
     of_members("1P1D", 3, 2, 2, 2), "P:n1+n1 D:n2+n2"),
    ("and grouped over nodes where none holds all", "n1:5 n2:5",
     of_members("1P1D", 3, 2, 2, 2), "P:n1+n2 D:n1+n2"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "asked", "want"), [p[1:] for p in PACKED], ids=[p[0] for p in PACKED]
)
def test_which_nodes_of_a_leaf_are_taken(nodes: str, asked: GroupRequest, want: str) -> None:
    assert nodes_of(nodes, asked) == want


ONLY_PREFILLS = [
    ("volumes", {}, {"nodes": frozenset({"n9"})}),
    ("taints", {"tolerations": (Toleration("example.com/npu", "Exists"),)}, {}),
    ("labels", {}, {"selector": frozenset({(Requirement("disk", "Exists"),)})}),
]


@pytest.mark.parametrize(
    ("prefill", "decode"), [o[1:] for o in ONLY_PREFILLS], ids=[o[0] for o in ONLY_PREFILLS]
)
def test_a_node_offers_its_devices_to_the_role_that_may_use_it(
    prefill: dict[str, Any], decode: dict[str, Any]
) -> None:
    tree = fabric("p1 a  n1:8!Tainted" if "tolerations" in prefill else "p1 a  n1:8")
    one, other = Shape(RESOURCE, 4, **prefill), Shape(RESOURCE, 4, **decode)
    there = capacity_for(tree, GroupRequest(1, 1, one, other))
    assert there.nodes[LEAF] == (NodeRoom("n1", 8, 0),)
    assert [there.leaves[LEAF].most_decodes(p) for p in range(4)] == [0, 0, 0, -1]
    back = capacity_for(tree, GroupRequest(1, 1, other, one))
    assert back.nodes[LEAF] == (NodeRoom("n1", 0, 8),)
    assert [back.leaves[LEAF].most_decodes(p) for p in range(2)] == [2, -1]


def test_suspects_are_left_out_of_what_is_known_without_counting_all_again() -> None:
    tree = fabric("p1 a  n1:8 n2:8\np2 b  m1:8")
    every = capacity_for(tree, request("1P1D"))
    less = capacity_for(tree, request("1P1D", exclude=["n1", "elsewhere"]))
    assert [room.prefills for room in less.leaves.values()] == [1, 1]
    assert less.together(tree.leaves).free == 16
    assert less.part((), tuple(tree.leaves)).free == 16
    assert less.nodes[("p2", "b")] is every.nodes[("p2", "b")]
    assert every.part((), tuple(tree.leaves)).free == 24


def test_what_shapes_say_of_themselves() -> None:
    one, four = Shape(RESOURCE, 8), Shape(RESOURCE, 8, members=4)
    assert (one.total, four.total) == (8, 32)
    assert (one.devices_text, four.devices_text) == (f"8 {RESOURCE}", f"4 x 8 {RESOURCE}")
    assert [Shape(RESOURCE, 1, nodes=n).reaches("n1") for n in (None, frozenset({"n1"}))] == [
        True,
        True,
    ]
    assert not Shape(RESOURCE, 1, nodes=frozenset()).reaches("n1")
