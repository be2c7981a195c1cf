"""A scenario is kept off a single node: whole groups, single instances, and what is given up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.builders import fabric, request

from pdserve.placement import (
    GroupRequest,
    InstancePlacement,
    Mode,
    PlacedInstance,
    Placement,
    Site,
    choose_removal,
    fatal_nodes,
    only_node,
    place,
    place_instance,
    site_of,
)
from pdserve.terms import Role


def members(text: str) -> list[PlacedInstance]:
    """`members("P:n1 D:n2")`."""
    parts = [part.split(":") for part in text.split()]
    roles: dict[str, Role] = {"P": "prefill", "D": "decode"}
    return [
        PlacedInstance(f"{roles[r]}-{k}", roles[r], (node,)) for k, (r, node) in enumerate(parts)
    ]


def site(text: str) -> Site:
    """`site("P:n1 D:n2")`."""
    return site_of(members(text))


def where(found: object) -> str:
    """`P:n1 D:n2`, prefills first, as `members` reads it."""
    assert isinstance(found, Placement), found
    return " ".join(f"{a.role[0].upper()}:{a.nodes[0]}" for a in found.assignments)


TWO_LEAVES = """p1 a  n1:4 n2:0/4
                p2 b  m1:4"""
CASES = [
    ("one and one share no node", "p1 a  n1:4 n2:4", request("1P1D", 1), "P:n1 D:n2"),
    ("the only node takes all", "p1 a  n1:4 n2:0/4", request("1P1D", 1), "P:n1 D:n1"),
    ("a cordoned node is none", "p1 a  n1:4 n2:4!Unschedulable", request("1P1D", 1), "P:n1 D:n1"),
    ("a suspect one is none", "p1 a  n1:4 n2:4", request("1P1D", 1, exclude=["n2"]), "P:n1 D:n1"),
    ("whatever the traffic", TWO_LEAVES, request("1P1D", 1), "P:n1 D:m1"),
    ("but inside what is required", TWO_LEAVES, request("1P1D", 1, mode="Required"), "P:n1 D:n1"),
    ("either half has both roles", "p1 a  n1:4 n2:4", request("2P2D", 1), "P:n1 P:n2 D:n1 D:n2"),
    ("most stay", "p1 a  n1:8 n2:2", request("1P4D", 1), "P:n1 D:n1 D:n1 D:n2 D:n2"),
    ("one off is enough", "p1 a  n1:8 n2:1/2", request("2P4D", 1), "P:n1 P:n1 D:n1 D:n1 D:n1 D:n2"),
    ("the prefill, if no decode fits", "p1 a  n1:8 n2:1", request("1P1D", 1, 4), "P:n2 D:n1"),
    ("full nodes pair the roles", "p1 a  n1:2 n2:2", request("2P2D", 1), "P:n1 P:n2 D:n1 D:n2"),
    (
        "the second group goes elsewhere whole",
        "p1 a  n1:4 n2:4",
        replace(request("1P1D", 1), beside=(site("P:n1 D:n1"),)),
        "P:n2 D:n2",
    ),
    (
        "or in part",
        "p1 a  n1:4 n2:1/4",
        replace(request("1P1D", 1), beside=(site("P:n1 D:n1"),)),
        "P:n2 D:n1",
    ),
    (
        "off nodes that either would end the service",
        "p1 a  n1:2 n2:2 n3:4",
        replace(request("1P1D", 1), beside=(site("P:n1 D:n2"),)),
        "P:n3 D:n3",
    ),
    (
        "but not for more traffic",
        """p1 a  n1:2 n2:0/2
           p2 b  m1:1 m2:1
           p2 c  k1:1/2""",
        replace(request("1P1D", 1), beside=(site("P:n1 D:m1"),), exclude=frozenset({"m2"})),
        "P:n1 D:n1",
    ),
    (
        "the tightest node when nothing hangs on one",
        "p1 a  n1:2 n2:4 n3:4",
        replace(request("1P1D", 1), beside=(site("P:n1 D:n1"), site("P:n2 D:n2"))),
        "P:n1 D:n1",
    ),
    (
        "whole, as another group follows and goes elsewhere",
        "p1 a  n1:4 n2:4",
        replace(request("1P1D", 1), more=True),
        "P:n1 D:n1",
    ),
    (
        "in parts, as the group that follows finds no place",
        "p1 a  n1:2 n2:1/4",
        replace(request("1P1D", 1), more=True),
        "P:n2 D:n1",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("drawing", "asked", "want"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_a_group_is_kept_apart(drawing: str, asked: GroupRequest, want: str) -> None:
    assert where(place(fabric(drawing), asked)) == want


@pytest.mark.parametrize(("mode", "traffic"), [("Required", 1), ("Preferred", 0)])
def test_what_a_group_kept_apart_costs_counts_leaves_as_its_locality_does(
    mode: Mode, traffic: int
) -> None:
    tree = fabric("p1 a  n1:4 n2:0/4\np1 b  m1:4")
    found = place(tree, request("1P1D", 1, mode=mode, level="pod"))
    assert where(found) == "P:n1 D:m1"
    assert isinstance(found, Placement)
    assert found.cost.traffic == traffic


def test_it_says_why() -> None:
    found = place(fabric("p1 a  n1:4 n2:4"), request("1P1D", 1))
    assert isinstance(found, Placement)
    assert found.explanation[0].startswith("apart from n1 [a: 1P1D]: unplaced 0, traffic 0")
    assert found.explanation[1].endswith("lost: the whole scenario on n1")
    assert [c.verdict == "won" for c in found.candidates].count(True) == 1
    assert len(found.reservations) == 2


INSTANCES = [
    ("a substitute leaves its peer's node", "p1 a  n1:3/4 n2:4", "P:n1", (), "n2"),
    ("across leaves too", "p1 a  n1:3/4\np2 b  m1:4", "P:n1", (), "m1"),
    ("unless there is no other", "p1 a  n1:3/4 n2:0/4", "P:n1", (), "n1"),
    ("another group is elsewhere", "p1 a  n1:3/4 n2:4", "P:n1", ("P:n2 D:n2",), "n1"),
    ("another group is there too", "p1 a  n1:1/4 n2:4", "P:n1", ("P:n1 D:n1",), "n2"),
    ("no node takes both decodes", "p1 a  n1:1/4 n2:2/4 n3:3/4", "P:n1 P:n2 D:n2", (), "n1"),
    ("closeness before that", "p1 a  n1:2/4\np2 b  m1:4", "P:n1 P:m1 D:n1", (), "n1"),
]


@pytest.mark.parametrize(
    ("drawing", "group", "others", "want"),
    [c[1:] for c in INSTANCES],
    ids=[c[0] for c in INSTANCES],
)
def test_a_decode_more_is_kept_apart(
    drawing: str, group: str, others: tuple[str, ...], want: str
) -> None:
    asked = replace(request("2P2D", 1), beside=tuple(site(other) for other in others))
    tree = fabric(drawing)
    found = place_instance(tree, asked, "decode", members(group), tree.leaf("n1"))
    assert isinstance(found, InstancePlacement)
    assert found.nodes[0] == want


def test_one_more_goes_where_less_crosses_though_all_of_its_role_hang_on_a_node() -> None:
    tree = fabric("p1 a  n1:2/4 n2:0/4\np2 b  m1:4")
    found = place_instance(tree, request("2P2D", 1), "decode", members("P:n1 P:n2 D:n1"))
    assert isinstance(found, InstancePlacement)
    assert found.nodes == ("n1",)


def test_giving_up_one_leaves_two_nodes() -> None:
    tree = fabric("p1 a  n1:4 n2:4")
    group = members("P:n1 D:n2 D:n1 D:n1")
    assert choose_removal(tree, "decode", group, 2).names == ("decode-3", "decode-2")
    elsewhere = choose_removal(tree, "decode", group, 1, beside=[site("P:n2 D:n2")])
    assert elsewhere.names == ("decode-3",)
    last = members("P:n1 D:n1 D:n2")
    assert choose_removal(tree, "decode", last, 1).names == ("decode-1",)
    assert choose_removal(tree, "decode", last, 1, beside=[site("P:n2 D:n2")]).names == (
        "decode-2",
    )


@pytest.mark.parametrize(
    ("groups", "only", "fatal"),
    [
        ((), None, ()),
        (("P:a",), None, ()),
        (("D:a",), None, ()),
        (("P:a D:a",), "a", ("a",)),
        (("P:a D:b",), None, ("a", "b")),
        (("P:a P:b D:a D:b",), None, ()),
        (("P:a P:b D:c",), None, ("c",)),
        (("P:a D:a", "P:a D:a"), "a", ("a",)),
        (("P:a D:a", "P:b D:b"), None, ()),
        (("P:a D:b", "P:b D:c"), None, ("b",)),
        (("P:a D:a", "P:b"), None, ("a",)),
    ],
)
def test_what_hangs_on_one_node(
    groups: tuple[str, ...], only: str | None, fatal: tuple[str, ...]
) -> None:
    sites = [site(g) for g in groups]
    assert (only_node(sites), fatal_nodes(sites)) == (only, frozenset(fatal))
