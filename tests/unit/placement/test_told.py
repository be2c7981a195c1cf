"""What an answer says: the candidates, why they lost, and what a refusal counts."""

from __future__ import annotations

import pytest
from tests.support.builders import LABELS, RESOURCE, SPEC, fabric, request

from pdserve.placement import (
    GroupRequest,
    InstancePlacement,
    NoFit,
    PlacedInstance,
    Placement,
    Shape,
    choose_removal,
    largest_group,
    largest_uniform_group,
    place,
    place_instance,
    traffic,
)
from pdserve.placement.capacity import capacity_for
from pdserve.placement.strategies import improve
from pdserve.topology import NodeView, Reservation, Toleration, build_fabric
from pdserve.topology.affinity import Requirement

PODS = "p1 a  n1:8 n2:8\np1 b  m1:8\np2 c  k1:8"


def placed(drawing: str, asked: GroupRequest) -> Placement:
    found = place(fabric(drawing), asked)
    assert isinstance(found, Placement), found
    return found


def refused(drawing: str, asked: GroupRequest) -> str:
    found = place(fabric(drawing), asked)
    assert isinstance(found, NoFit), found
    return found.message


WIDTHS = [
    ("a leaf without crossing ends the search", PODS, request("1P1D"), ["one leaf"]),
    (
        "cells of a pod without crossing do",
        "p1 a  n1:8 n2:8\np1 b  m1:8 m2:8\np2 c  k1:8",
        request("2P2D"),
        ["balanced cells in p1"],
    ),
    (
        "each width in turn up to the domain",
        "p1 a  n1:8\np2 c  k1:8",
        request("1P1D"),
        ["leaves of the whole domain by room", "the whole domain packed"],
    ),
    (
        "a pod that holds all, then the domain",
        "p1 a  n1:8\np1 b  m1:8\np2 c  k1:8",
        request("1P1D"),
        [
            "leaves of p1 by room",
            "leaves of the whole domain by room",
            "p1 packed",
            "the whole domain packed",
        ],
    ),
    (
        "no wider than what is required",
        "p1 a  n1:8\np1 b  m1:8\np2 c  k1:8",
        request("1P1D", mode="Required", level="pod"),
        ["leaves of p1 by room", "p1 packed"],
    ),
    ("a leaf alone where a leaf is required", PODS, request("1P1D", mode="Required"), ["one leaf"]),
    (
        "crossing that costs nothing ends the search too",
        "p1 a  n1:8\np1 b  m1:8\np2 c  k1:8",
        request("1P1D", level="pod"),
        ["leaves of p1 by room", "p1 packed"],
    ),
]


@pytest.mark.parametrize(
    ("drawing", "asked", "kinds"), [w[1:] for w in WIDTHS], ids=[w[0] for w in WIDTHS]
)
def test_candidates_from_the_closest_to_the_widest(
    drawing: str, asked: GroupRequest, kinds: list[str]
) -> None:
    found = [c.kind for c in placed(drawing, asked).candidates if "apart" not in c.kind]
    assert sorted(found) == sorted(kinds)


def test_a_required_part_is_searched_for_the_least_traffic_inside_it() -> None:
    """`Preferred` at this level would not look at leaves at all."""
    drawing = "p1 a  n1:8 n2:8 n3:8\np1 b  m1:8 m2:8 m3:8"
    required = placed(drawing, request("3P2D", mode="Required", level="pod"))
    assert required.cost.traffic > 0
    assert placed(drawing, request("3P2D", level="pod")).cost.traffic == 0


def test_no_candidate_can_be_bettered_by_moving_one_instance() -> None:
    drawing = "p1 a  n1:8 n2:8 n3:8\np1 b  m1:8 m2:8\np2 c  k1:8 k2:8 k3:8"
    asked = request("3P2D")
    tree = fabric(drawing)
    capacity = capacity_for(tree, asked)
    searched = [c for c in placed(drawing, asked).candidates if "cells" not in c.kind]
    assert len(searched) == 4
    for candidate in searched:
        spread = {cell.leaf: (cell.prefill, cell.decode) for cell in candidate.cells}
        inside = [x for x in tree.leaves if "p1" not in candidate.kind or x[0] == "p1"]
        better = improve(spread, capacity, inside, (3, 1))
        assert traffic(better, (3, 1)) == candidate.cost.traffic


def test_cells_and_instances_come_in_the_order_of_leaves_not_of_room() -> None:
    drawing = "p1 a  n1:8\np1 b  m1:8 m2:8 m3:8 m4:8\np2 c  k1:8"
    found = placed(drawing, request("3P2D"))
    assert [cell.leaf[-1] for cell in found.cells] == ["a", "b"]
    assert [a.nodes[0] for a in found.assignments] == ["n1", "m1", "m3", "m2", "m4"]
    for candidate in found.candidates:
        leaves = [cell.leaf for cell in candidate.cells]
        assert leaves == sorted(leaves)


def test_the_winner_comes_first_and_the_others_say_on_what_they_lost() -> None:
    found = placed("p1 a  n1:8 n2:8 n3:8 n4:8\np1 b  m1:8\np2 c  k1:8 k2:8", request("3P2D"))
    assert found.explanation[0].endswith(": won")
    verdicts = [c.verdict for c in found.candidates]
    assert verdicts.count("won") == 1
    for candidate in found.candidates:
        if candidate.verdict != "won" and candidate.cost == found.cost:
            assert candidate.verdict == "lost: equal cost, generated later"
        elif candidate.verdict != "won":
            assert candidate.verdict.startswith("lost on ")
            assert candidate.cost > found.cost


def test_eight_candidates_are_shown_and_the_rest_counted() -> None:
    pods = "\n".join(f"p{k} a{k}  n{k}:8\np{k} b{k}  m{k}:8" for k in range(6))
    found = placed(pods, request("1P1D"))
    assert len(found.candidates) > 8
    shown = [line for line in found.explanation if "traffic" in line]
    assert len(shown) == 8
    assert found.explanation[-1] == f"{len(found.candidates) - 8} costlier candidates not shown"


def test_five_leaves_are_shown_for_one_more_instance() -> None:
    leaves = "\n".join(f"p1 a{k}  n{k}:8" for k in range(7))
    found = place_instance(fabric(leaves), request("1P1D"), "decode", [])
    assert isinstance(found, InstancePlacement)
    assert len(found.explanation) == 5


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
    assert largest_uniform_group(tree, Shape(RESOURCE, 1), Shape(RESOURCE, 1)) == (64, 64)
    assert largest_uniform_group(tree, Shape(RESOURCE, 1), Shape(RESOURCE, 1), 3) == (3, 3)


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


def test_a_placement_reserves_what_each_instance_takes() -> None:
    shape = Shape(RESOURCE, 2, requests=(("cpu", 5),))
    found = place(fabric("p1 a  n1:8"), GroupRequest(1, 1, shape, shape))
    assert isinstance(found, Placement)
    assert [(a.role, a.ordinal, a.nodes) for a in found.assignments] == [
        ("prefill", 0, ("n1",)),
        ("decode", 0, ("n1",)),
    ]
    assert set(found.reservations) == {
        Reservation(f"{role}-0", "n1", resource, amount)
        for role in ("prefill", "decode")
        for resource, amount in ((RESOURCE, 2), ("cpu", 5))
    }


REMOVALS = [
    ("not ready first, whatever the traffic", "D:n1 d:n2 D:k1", 1, ["decode-1"]),
    ("then what leaves the least traffic", "D:n1 D:n2 D:k1", 1, ["decode-2"]),
    ("then the fewest leaves, then the last name", "D:n1 D:n2 D:n1", 1, ["decode-2"]),
    ("one after another", "D:n1 D:n2 D:k1", 2, ["decode-2", "decode-1"]),
    ("none", "D:n1 D:n2", 0, []),
    ("never the last", "D:n1", 1, []),
]


@pytest.mark.parametrize(
    ("group", "count", "want"), [r[1:] for r in REMOVALS], ids=[r[0] for r in REMOVALS]
)
def test_which_instances_are_given_up(group: str, count: int, want: list[str]) -> None:
    members = [
        PlacedInstance(f"decode-{k}", "decode", (part.partition(":")[2],), part[0] == "D")
        for k, part in enumerate(group.split())
    ]
    members.append(PlacedInstance("prefill-0", "prefill", ("n1",)))
    members.append(PlacedInstance("prefill-1", "prefill", ("n2",)))
    found = choose_removal(fabric("p1 a  n1:8 n2:8\np2 c  k1:8"), "decode", members, count)
    assert list(found.names) == want
    assert ("the last decode stays" in found.explanation) is (count > len(want))
