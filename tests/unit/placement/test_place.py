"""Whole P/D groups: which leaves they get, and what is said when there is no place."""

from __future__ import annotations

import pytest
from tests.support.builders import LABELS, RESOURCE, SPEC, cells, fabric, request

from pdserve.placement import (
    GroupRequest,
    NoFit,
    Placement,
    Shape,
    largest_group,
    place,
    uniform_request,
)
from pdserve.topology import NodeView, Reservation, Toleration, build_fabric

CASES = [
    (
        "the tightest leaf that holds the whole group",
        """p1 a  n1:8 n2:8 n3:8 n4:8 n5:8
           p1 b  m1:8 m2:8 m3:8
           p2 c  k1:8 k2:8 k3:8 k4:8""",
        request("2P1D"),
        {"b": "2P1D"},
    ),
    (
        "no leaf holds it: balanced cells in one pod, not the roomier pod with a lopsided spread",
        """p1 a  n1:8 n2:8 n3:8
           p1 b  m1:8 m2:8 m3:8
           p2 c  k1:8 k2:8 k3:8 k4:8 k5:8
           p2 d  l1:8""",
        request("4P2D"),
        {"a": "2P1D", "b": "2P1D"},
    ),
    (
        "balanced cells across pods beat an unbalanced spread inside one",
        """p1 a  n1:8 n2:8 n3:8
           p1 b  m1:8
           p2 c  k1:8 k2:8 k3:8""",
        request("4P2D"),
        {"a": "2P1D", "c": "2P1D"},
    ),
    (
        "coprime counts: as much as matches in one leaf, the rest beside it in the same pod",
        """p1 a  n1:8 n2:8 n3:8 n4:8
           p1 b  m1:8
           p2 c  k1:8""",
        request("3P2D"),
        {"a": "2P2D", "b": "1P0D"},
    ),
    (
        "several instances share a node",
        "p1 a  n1:8",
        request("2P2D", 2),
        {"a": "2P2D"},
    ),
    (
        "roles of different size share a node",
        """p1 a  n1:8
           p1 b  m1:1/8""",
        request("1P2D", 4, 2),
        {"a": "1P2D"},
    ),
    (
        "sizes that do not divide each other: 3+3+2 fill a node of 8, which 2+2+2 first would not",
        "p1 a  n1:8",
        request("2P1D", 3, 2),
        {"a": "2P1D"},
    ),
    (
        "out of use: not ready, cordoned by kubectl, tainted",
        """p1 a  n1:8!NotReady n2:8 n3:8
           p1 b  m1:8!Unschedulable m2:8 m3:8
           p2 c  k1:8!Tainted k2:8 k3:8
           p2 d  l1:8 l2:8 l3:8 l4:8""",
        request("2P1D"),
        {"d": "2P1D"},
    ),
    (
        "suspects are never used",
        """p1 a  n1:8 n2:8
           p1 b  m1:8 m2:8 m3:8""",
        request("1P1D", exclude=["n1"]),
        {"b": "1P1D"},
    ),
    (
        "Required pod: the cheapest pod that holds all",
        """p1 a  n1:8
           p2 c  k1:8
           p2 d  l1:8""",
        request("1P1D", mode="Required", level="pod"),
        {"c": "0P1D", "d": "1P0D"},
    ),
    (
        "Preferred pod: leaves inside a pod do not count, so fewer leaves decide",
        """p1 a  n1:8 n2:8
           p1 b  m1:8 m2:8""",
        request("2P2D", level="pod"),
        {"a": "1P1D", "b": "1P1D"},
    ),
]


@pytest.mark.parametrize(
    ("drawing", "asked", "want"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_where_a_group_goes(drawing: str, asked: GroupRequest, want: dict[str, str]) -> None:
    found = place(fabric(drawing), asked)
    assert isinstance(found, Placement), found
    assert cells(found) == want
    assert len(found.on("prefill")) == asked.prefill
    assert len(found.on("decode")) == asked.decode


def test_balanced_cells_cost_no_traffic_and_the_explanation_says_why_others_lost() -> None:
    tree = fabric("""p1 a  n1:8 n2:8 n3:8
                     p1 b  m1:8 m2:8 m3:8 m4:8""")
    found = place(tree, request("4P2D"))
    assert isinstance(found, Placement)
    assert found.cost.traffic == 0
    assert "balanced cells in p1 [a: 2P1D, b: 2P1D]" in found.explanation[0]
    assert found.explanation[0].endswith("won")
    lopsided = place(tree, request("5P2D"))
    assert isinstance(lopsided, Placement)
    assert lopsided.cost.traffic > 0
    assert any("lost" in c.verdict for c in lopsided.candidates)


def test_a_cordoned_part_takes_nothing() -> None:
    drawing = """p1 a  n1:8 n2:8
                 p1 b  m1:8 m2:8 m3:8"""
    found = place(fabric(drawing, cordoned=[("leaf", "a")]), request("1P1D"))
    assert isinstance(found, Placement)
    assert cells(found) == {"b": "1P1D"}


def test_a_tolerated_taint_is_no_obstacle() -> None:
    tree = fabric("p1 a  n1:8!Tainted n2:8!Tainted")
    plain = request("1P1D")
    assert isinstance(place(tree, plain), NoFit)
    tolerant = Shape(RESOURCE, 8, (Toleration("example.com/npu", "Exists"),))
    assert isinstance(place(tree, GroupRequest(1, 1, tolerant, tolerant)), Placement)


def test_roles_on_different_resources_do_not_compete() -> None:
    views = [
        NodeView(
            f"n{k}",
            labels={LABELS[0]: "p1", LABELS[1]: "a"},
            allocatable={RESOURCE: 8 * (k == 1), "example.com/gpu": 4 * (k == 2)},
        )
        for k in (1, 2)
    ]
    asked = GroupRequest(1, 2, Shape(RESOURCE, 8), Shape("example.com/gpu", 2))
    found = place(build_fabric(SPEC, views), asked)
    assert isinstance(found, Placement)
    assert (found.on("prefill"), found.on("decode")) == ((("n1",),), (("n2",), ("n2",)))
    more = GroupRequest(1, 3, Shape(RESOURCE, 8), Shape("example.com/gpu", 2))
    refused = place(build_fabric(SPEC, views), more)
    assert isinstance(refused, NoFit)
    assert "prefill 8 example.com/npu, decode 2 example.com/gpu" in refused.message


def test_reserved_devices_are_taken() -> None:
    tree = fabric("p1 a  n1:8 n2:8")
    first = place(tree, request("1P1D"))
    assert isinstance(first, Placement)
    assert isinstance(place(tree.reserve(first.reservations), request("1P1D")), NoFit)
    assert isinstance(
        place(tree.reserve([Reservation("x", "n1", RESOURCE, 1)]), request("1P1D")), NoFit
    )


def test_nofit_names_what_is_missing_and_what_fits() -> None:
    tree = fabric("""p1 a  n1:8 n2:8
                     p1 b  m1:8 m2:4/8 m3:8!NotReady""")
    found = place(tree, request("4P2D"))
    assert isinstance(found, NoFit)
    assert "3 of 6 instances have no node" in found.message
    assert "largest P/D group that fits now: 2P1D" in found.message
    assert "1 (NotReady)" in found.message
    assert "8 example.com/npu each" in found.message


def test_required_refuses_with_the_reason() -> None:
    tree = fabric("""p1 a  n1:8
                     p1 b  m1:8 m2:8""")
    found = place(tree, request("2P1D", mode="Required", level="leaf"))
    assert isinstance(found, NoFit)
    assert "inside one leaf (most room: b)" in found.message
    assert "largest P/D group that fits now: 1P1D" in found.message
    assert isinstance(place(tree, request("2P1D", mode="Required", level="pod")), Placement)


def test_an_unknown_level_is_named_with_the_right_ones() -> None:
    found = place(fabric("p1 a  n1:8 n2:8"), request("1P1D", level="rack"))
    assert isinstance(found, NoFit)
    assert "'rack' is not a level of RoCEDomain 'test'; its levels are pod, leaf" in found.message


def test_an_empty_domain_places_nothing() -> None:
    found = place(fabric(""), request("1P1D"))
    assert isinstance(found, NoFit)
    assert "none, not even 1P1D" in found.message


def test_largest_group() -> None:
    tree = fabric("""p1 a  n1:8 n2:8 n3:8
                     p2 b  m1:8 m2:8""")
    assert largest_group(tree, request("6P3D")) == (3, 2)
    assert largest_group(tree, request("6P3D", mode="Required")) == (2, 1)
    assert largest_group(tree, uniform_request(Shape(RESOURCE, 8), Shape(RESOURCE, 8))) == (3, 2)
    assert largest_group(fabric("p1 a  n1:8"), request("1P1D")) is None
