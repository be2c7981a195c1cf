"""What a refusal says: how much is missing, what would fit, and why nodes do not count."""

from __future__ import annotations

import pytest
from tests.support.builders import LABELS, RESOURCE, SPEC, fabric, request
from tests.support.placement_answers import refused

from pdserve.placement import (
    GroupRequest,
    InstancePlacement,
    NoFit,
    Shape,
    largest_group,
    place,
    place_instance,
    uniform_request,
)
from pdserve.topology import NodeView, Toleration, build_fabric
from pdserve.topology.affinity import Requirement

MISSING = [
    ("one of three", "p1 a  n1:8 n2:8", request("2P1D"), "1 of 3 instances have no node", "1P1D"),
    ("all", "p1 a  n1:4", request("2P1D"), "3 of 3 instances have no node", "none, not even 1P1D"),
    (
        "in the required leaf with the most room",
        "p1 a  n1:8\np1 b  m1:8 m2:8\np1 c  k1:8",
        request("2P1D", mode="Required"),
        "1 of 3 instances have no node inside one leaf (most room: b)",
        "1P1D",
    ),
    (
        "in the required pod",
        "p1 a  n1:8\np2 b  m1:8 m2:8",
        request("2P1D", mode="Required", level="pod"),
        "1 of 3 instances have no node inside one pod (most room: p2)",
        "1P1D",
    ),
    (
        "in no required leaf",
        "p1 a  n1:4",
        request("1P1D", mode="Required"),
        "2 of 2 instances have no node inside one leaf (most room: the whole domain)",
        "none, not even 1P1D",
    ),
    (
        "whatever the ratio: prefills fit, decodes do not",
        "p1 a  n1:4 n2:4 n3:4",
        request("3P2D", 4, 8),
        "2 of 5 instances have no node",
        "none, not even 1P1D",
    ),
]


@pytest.mark.parametrize(
    ("drawing", "asked", "says", "largest"), [m[1:] for m in MISSING], ids=[m[0] for m in MISSING]
)
def test_a_refusal_says_how_many_have_no_node_and_what_fits(
    drawing: str, asked: GroupRequest, says: str, largest: str
) -> None:
    message = refused(drawing, asked)
    assert f"does not fit: {says};" in message
    assert f"largest P/D group that fits now: {largest}" in message


LARGEST = [
    ("the greatest share of both", "p1 a  n1:64", request("3P9D"), (2, 6)),
    ("then the most instances", "p1 a  n1:8 n2:8 n3:8", request("1P9D"), (1, 2)),
    ("then the most prefills", "p1 a  n1:8 n2:8 n3:8", request("9P9D"), (2, 1)),
    ("never more than asked", "p1 a  n1:8 n2:8 n3:8 n4:8", request("1P2D"), (1, 2)),
    ("in one leaf if required", "p1 a  n1:8 n2:8\np1 b  m1:8", request("2P2D", mode="Required"),
     (1, 1)),
    ("none", "p1 a  n1:8", request("1P1D"), None),
    ("none at an unknown level", "p1 a  n1:8 n2:8", request("1P1D", level="rack"), None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("drawing", "asked", "want"), [x[1:] for x in LARGEST], ids=[x[0] for x in LARGEST]
)
def test_the_largest_group_that_fits(
    drawing: str, asked: GroupRequest, want: tuple[int, int] | None
) -> None:
    assert largest_group(fabric(drawing), asked) == want


def test_the_largest_group_of_any_ratio_has_at_most_64_a_side() -> None:
    tree = fabric("p1 a  n1:200")
    assert largest_group(tree, uniform_request(Shape(RESOURCE, 1), Shape(RESOURCE, 1))) == (64, 64)
    assert largest_group(tree, uniform_request(Shape(RESOURCE, 1), Shape(RESOURCE, 1), 3)) == (3, 3)


REASONS = [
    ("the first of its reasons", "p1 a  n1:8!NotReady", ["n1"], "1 (NotReady)"),
    ("suspects", "p1 a  n1:8 n2:8", ["n1"], "1 (suspect after a fault)"),
    (
        "the most frequent first, then by name",
        "p1 a  n1:8!NotReady n2:8!Unschedulable n3:8!Unschedulable n4:8!Tainted",
        [],
        "2 (Unschedulable), 1 (NotReady), 1 (Taint example.com/npu:NoSchedule)",
    ),
    (
        "three of them",
        "p1 a  n1:8!NotReady n2:8!Unschedulable n3:8 n4:8!Tainted",
        ["n3"],
        "1 (NotReady), 1 (Taint example.com/npu:NoSchedule), 1 (Unschedulable)",
    ),
]


@pytest.mark.parametrize(
    ("drawing", "suspects", "says"), [r[1:] for r in REASONS], ids=[r[0] for r in REASONS]
)
def test_nodes_out_of_use_are_counted_by_reason(
    drawing: str, suspects: list[str], says: str
) -> None:
    message = refused(drawing, request("9P9D", exclude=suspects))
    assert message.endswith(f"; nodes out of use: {says}")


def test_the_reason_of_a_node_is_the_first_that_holds() -> None:
    """Its state before suspicion, that before volumes, those before labels."""
    wanted = frozenset({(Requirement("disk", "In", ("x" * 300,)),)})
    shape = Shape(RESOURCE, 8, nodes=frozenset({"n1", "n2", "n4"}), selector=wanted)
    asked = GroupRequest(1, 1, shape, shape, exclude=frozenset({"n1", "n2"}))
    message = refused("p1 a  n1:8!NotReady n2:8 n3:8", asked)
    assert "1 (NotReady), 1 (a volume is elsewhere), 1 (suspect after a fault)" in message
    told = refused("p1 a  n4:8", asked).rpartition("out of use: 1 (")[2].removesuffix(")")
    assert told.startswith("the template wants disk=xxx")
    assert len(told) == 200
    easy = Shape(RESOURCE, 8, (Toleration("example.com/npu", "Exists"),))
    mixed = GroupRequest(1, 1, easy, Shape(RESOURCE, 8), exclude=frozenset({"n1"}))
    assert "1 (suspect after a fault)" in refused("p1 a  n1:8!Tainted", mixed), "the first role's"


def test_a_node_that_one_role_may_not_use_is_out_of_use_for_the_group_alone() -> None:
    picky, easy = Shape(RESOURCE, 8), Shape(RESOURCE, 8, (Toleration("example.com/npu", "Exists"),))
    tree = fabric("p1 a  n1:8!Tainted")
    found = place(tree, GroupRequest(1, 1, easy, picky))
    assert isinstance(found, NoFit)
    assert "1 (Taint example.com/npu:NoSchedule)" in found.message
    assert "8 devices are free on usable nodes" in found.message
    asked = GroupRequest(1, 1, easy, picky)
    assert isinstance(place_instance(tree, asked, "prefill", []), InstancePlacement)
    alone = place_instance(tree, asked, "decode", [])
    assert isinstance(alone, NoFit)
    assert "none has 8 together" in alone.message


@pytest.mark.parametrize(
    ("free", "says"),
    [
        ("4 4", "8 devices are free on usable nodes, none has 8 together"),
        ("8", "8 devices are free on usable nodes, none has 9 together"),
        ("0/8", "0 devices are free on usable nodes, none has 8 together"),
    ],
)
def test_one_more_instance_says_whether_its_devices_are_on_one_node(free: str, says: str) -> None:
    nodes = " ".join(f"n{k}:{amount}" for k, amount in enumerate(free.split()))
    size = 9 if free == "8" else 8
    found = place_instance(fabric(f"p1 a  {nodes}"), request("1P1D", size), "decode", [])
    assert isinstance(found, NoFit)
    assert says in found.message
    assert found.message.startswith(f"no node for one more decode ({size} {RESOURCE}): ")


def test_free_devices_are_those_of_every_resource_that_the_roles_use() -> None:
    gpu = "example.com/gpu"
    labels = {LABELS[0]: "p1", LABELS[1]: "a"}
    have = {RESOURCE: 3, gpu: 2, "example.com/nic": 5}
    tree = build_fabric(SPEC, [NodeView("n1", labels=labels, allocatable=have)])
    found = place(tree, GroupRequest(1, 1, Shape(RESOURCE, 8), Shape(gpu, 8)))
    assert isinstance(found, NoFit)
    assert f"(prefill 8 {RESOURCE}, decode 8 {gpu}) does not fit" in found.message
    assert "5 devices are free on usable nodes" in found.message
    same = place(tree, GroupRequest(1, 1, Shape(RESOURCE, 8), Shape(RESOURCE, 8)))
    assert isinstance(same, NoFit)
    assert f"(8 {RESOURCE} each) does not fit" in same.message
    assert "3 devices are free on usable nodes" in same.message


def test_six_shortages_are_reported() -> None:
    names = [f"example.com/r{k}" for k in range(8)]
    shape = Shape(RESOURCE, 1, requests=tuple((name, 1) for name in names))
    found = place(fabric("p1 a  n1:8"), GroupRequest(1, 1, shape, shape))
    assert isinstance(found, NoFit)
    assert [name for name in names if name in found.message] == names[:6]
