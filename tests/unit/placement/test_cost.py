"""What a spread over leaves costs, and what a refusal says first."""

from __future__ import annotations

import pytest
from tests.support.builders import RESOURCE, SPEC, draw, fabric, request

from pdserve.placement import (
    InstancePlacement,
    NoFit,
    Placement,
    crossing_percent,
    place,
    place_instance,
    traffic,
    weights,
)
from pdserve.placement.types import GroupRequest, Shape
from pdserve.topology import NodeView, build_fabric

A, B, C = ("p1", "a"), ("p1", "b"), ("p2", "c")


@pytest.mark.parametrize(
    ("level", "want"), [(None, (3, 1)), ("leaf", (3, 1)), ("pod", (3, 0))], ids=str
)
def test_what_crossing_costs_by_level(level: str | None, want: tuple[int, ...]) -> None:
    assert weights(fabric("p1 a  n1:8"), level) == want


SPREADS = [
    ("together", {A: (1, 1)}, 0, 0),
    ("each leaf in the ratio", {A: (2, 1), C: (2, 1)}, 0, 0),
    ("apart in one pod: the leaf's uplink carries all", {A: (1, 0), B: (0, 1)}, 1, 100),
    ("apart in two pods", {A: (1, 0), C: (0, 1)}, 4, 100),
    ("half of it", {A: (2, 1), B: (0, 1)}, 2, 50),
    ("a third, rounded up", {A: (3, 2), B: (0, 1)}, 3, 34),
    ("prefills alone", {A: (2, 0)}, 0, 0),
    ("decodes alone", {A: (0, 2)}, 0, 0),
    ("nothing", {}, 0, 0),
]


@pytest.mark.parametrize(
    ("spread", "cost", "percent"), [s[1:] for s in SPREADS], ids=[s[0] for s in SPREADS]
)
def test_traffic_and_the_share_that_crosses(
    spread: dict[tuple[str, ...], tuple[int, int]], cost: int, percent: int
) -> None:
    assert traffic(spread, (3, 1)) == cost
    assert crossing_percent(spread) == percent


def test_the_first_instance_of_a_required_group_may_go_anywhere() -> None:
    tree = fabric("p1 a  n1:0/8\np2 c  k1:8")
    found = place_instance(tree, request("1P1D", mode="Required"), "prefill", [])
    assert isinstance(found, InstancePlacement)
    assert found.nodes == ("k1",)


@pytest.mark.parametrize(("memory", "fits"), [(2, True), (1, True), (0, False), (-5, False)])
def test_a_node_that_promised_more_than_it_has_takes_nothing(memory: int, fits: bool) -> None:
    (node,) = draw("p1 a  n1:8")
    view = NodeView(
        "n1", labels=node.labels, capacity=node.capacity, allocatable=node.allocatable,
        offers={"memory": 100}, used={"memory": 100 - memory},
    )  # fmt: skip
    shape = Shape(RESOURCE, 1, requests=(("memory", 1),))
    asked = GroupRequest(1, 0, shape, shape)
    found = place_instance(build_fabric(SPEC, [view]), asked, "prefill", [])
    assert isinstance(found, InstancePlacement) is fits


@pytest.mark.parametrize(("memory", "fits"), [(5, True), (4, True), (3, False)])
def test_roles_on_different_devices_share_the_memory_of_a_node(memory: int, fits: bool) -> None:
    (node,) = draw("p1 a  n1:8")
    devices = {RESOURCE: 1, "example.com/gpu": 1}
    view = NodeView(
        "n1", labels=node.labels, capacity=devices, allocatable=devices, offers={"memory": memory}
    )
    one, other = (Shape(resource, 1, requests=(("memory", 2),)) for resource in devices)
    found = place(build_fabric(SPEC, [view]), GroupRequest(1, 1, one, other))
    assert isinstance(found, Placement) is fits


def test_a_refusal_names_the_first_reason_of_each_node() -> None:
    tree = fabric("p1 a  n1:8!NotReady n2:8 n3:8!Unschedulable")
    refused = place(tree, request("2P1D", exclude=["n1", "n2", "n3"]))
    assert isinstance(refused, NoFit)
    assert "1 (NotReady)" in refused.message
    assert "1 (Unschedulable)" in refused.message
    assert "1 (suspect after a fault)" in refused.message
