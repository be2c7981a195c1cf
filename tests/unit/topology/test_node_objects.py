"""Nodes as they are read: what an object leaves out, what of it cannot be read, what is left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from tests.support.builders import RESOURCE

from pdserve.topology import (
    NodeView,
    PodView,
    Taint,
    Toleration,
    node_view,
    pod_requests,
    pod_view,
    reservation_of,
)
from pdserve.wire import names
from pdserve.wire.pin import pin_to

OTHER = "example.com/a-nic"
"""Before `RESOURCE` in the order of names."""
ABSENT: list[dict[str, Any]] = [
    {},
    {"spec": {}, "status": {}},
    {"metadata": {"labels": None, "annotations": None}, "spec": {"taints": None}},
    {"status": {"capacity": None, "allocatable": None, "conditions": None}},
    {"metadata": {"labels": {}, "annotations": {}}, "spec": {"taints": []}},
]


@pytest.mark.parametrize("sections", ABSENT)
def test_what_a_node_leaves_out_or_states_as_null_is_none_of_it(sections: dict[str, Any]) -> None:
    metadata = {**sections.get("metadata", {}), "name": "n1"}
    assert node_view({**sections, "metadata": metadata}) == NodeView("n1", ready=False)


@pytest.mark.parametrize(
    "pod",
    [
        {},
        {"spec": {}},
        {"spec": {"containers": [{}]}},
        {"spec": {"containers": [{"resources": None, "ports": None}], "initContainers": None}},
        {"spec": {"containers": [{"resources": {"limits": None, "requests": None}}]}},
        {"spec": {"containers": None, "resources": None, "overhead": None}, "status": {}},
        {"spec": {"resources": {"limits": None, "requests": None}}},
        {"spec": {"resources": {"limits": {}}}},
    ],
)
def test_what_a_pod_leaves_out_or_states_as_null_it_does_not_take(pod: dict[str, Any]) -> None:
    assert pod_requests(pod) == {"pods": 1}


def test_amounts_of_pods_add_up() -> None:
    takes: list[dict[str, int]] = [{RESOURCE: 2, "pods": 1}, {RESOURCE: 3, "cpu": 5}]
    pods = [PodView(f"p{n}", requested=amounts) for n, amounts in enumerate(takes)]
    view = node_view({"metadata": {"name": "n1"}}, [*pods, replace(pods[0], phase="Failed")])
    assert view.used == {RESOURCE: 5, "cpu": 5, "pods": 1}


TAINTS: list[tuple[dict[str, str], tuple[Taint, ...]]] = [
    ({"key": "k", "effect": "NoSchedule"}, (Taint("k", "", "NoSchedule"),)),
    ({"key": "k", "value": "v", "effect": "NoExecute"}, (Taint("k", "v", "NoExecute"),)),
    ({"key": "k", "value": "v", "effect": "PreferNoSchedule"}, ()),
    ({"key": "k"}, ()),
]


@pytest.mark.parametrize(("taint", "want"), TAINTS, ids=[str(row[0]) for row in TAINTS])
def test_taints_that_keep_pods_off_are_read_with_their_values(
    taint: dict[str, str], want: tuple[Taint, ...]
) -> None:
    later = Taint("z", "", "NoSchedule")
    spec = {"taints": [{"key": "z", "effect": "NoSchedule"}, taint]}
    view = node_view({"metadata": {"name": "n1"}, "spec": spec})
    assert view.taints == (*want, later), "in the order of their keys"


@pytest.mark.parametrize(
    ("entry", "want"),
    [
        ({}, Toleration()),
        ({"key": "k", "operator": None, "value": None, "effect": None}, Toleration("k")),
        ({"operator": "Exists"}, Toleration("", "Exists")),
        (
            {"key": "k", "operator": "Exists", "value": "v", "effect": "NoExecute"},
            Toleration("k", "Exists", "v", "NoExecute"),
        ),
    ],
)
def test_a_toleration_is_read_with_kubernetes_defaults(
    entry: dict[str, str], want: Toleration
) -> None:
    assert Toleration.from_json(entry) == want


@pytest.mark.parametrize(
    ("tolerations", "blocked"),
    [((), "a"), (("a",), "b"), (("b",), "a"), (("a", "b"), None)],
    ids=["none", "the first", "the second", "both"],
)
def test_each_taint_needs_a_toleration_of_its_own(
    tolerations: tuple[str, ...], blocked: str | None
) -> None:
    view = NodeView("n", taints=(Taint("a", "", "NoSchedule"), Taint("b", "", "NoSchedule")))
    found = view.blocked(Toleration(key, "Exists") for key in tolerations)
    assert (found and found.text) == (blocked and f"Taint {blocked}:NoSchedule")


@pytest.mark.parametrize(
    ("condition", "want"),
    [
        ([{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": "True"}], 1),
        ([{"type": "MemoryPressure", "status": "True"}, {"type": "Ready", "status": "False"}], 0),
        ([{"type": "Ready"}], 0),
        ([{"status": "True"}], 0),
    ],
    ids=["among others", "others do not count", "without a status", "without a type"],
)
def test_ready_is_what_the_condition_of_that_type_says(
    condition: list[dict[str, str]], want: bool
) -> None:
    status = {"conditions": condition}
    assert node_view({"metadata": {"name": "n1"}, "status": status}).ready == want


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("no quantity", {OTHER: "much"}, f"{OTHER}: want a quantity"),
    ("part of a device", {OTHER: "1500m"}, f"{OTHER}: '1500m' is not a whole number of devices"),
    ("no quantity of another kind", {"cpu": "much"}, "cpu: want a quantity"),
]


@pytest.mark.parametrize(("amounts", "says"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_an_amount_that_cannot_be_read_costs_its_own_resource_only(
    amounts: dict[str, Any], says: str
) -> None:
    status = {"allocatable": {**amounts, RESOURCE: "8", "memory": "1Ki"}}
    view = node_view({"metadata": {"name": "n1"}, "status": status})
    assert (view.free(RESOURCE), view.left("memory")) == (8, 1024)
    (problem,) = view.problems
    assert problem.startswith(says)


def test_what_cannot_be_read_is_reported_in_the_same_order_whatever_the_objects() -> None:
    one = {"example.com/b": "much", "example.com/a": "more"}
    labels: dict[str, Any] = {"y": 1, "x": 2, "z": "fine"}
    views = [
        node_view({"metadata": {"name": "n", "labels": found}, "status": {"allocatable": amounts}})
        for found, amounts in (
            (labels, one),
            (dict(reversed(labels.items())), dict(reversed(one.items()))),
        )
    ]
    assert views[0].problems == views[1].problems
    assert [text.partition(":")[0] for text in views[0].problems] == [
        "label x",
        "label y",
        "example.com/a",
        "example.com/b",
    ]
    assert views[0].labels == {"z": "fine"}


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (names.ANNOTATION_ROCE_DEVICES, ""),
        (names.ANNOTATION_ROCE_DEVICES, "[]"),
        (names.ANNOTATION_UNHEALTHY_DEVICES, ""),
        (names.ANNOTATION_UNHEALTHY_DEVICES, "  "),
    ],
)
def test_an_empty_annotation_says_nothing(annotation: str, text: str) -> None:
    view = node_view({"metadata": {"name": "n1", "annotations": {annotation: text}}})
    assert view == NodeView("n1", ready=False)


@pytest.mark.parametrize(("count", "read"), [(1024, True), (1025, False)])
def test_annotations_may_name_as_many_devices_as_a_node_can_have(count: int, read: bool) -> None:
    devices = [{"id": k, "ip": "10.0.0.1"} for k in range(count)]
    annotations = {
        names.ANNOTATION_ROCE_DEVICES: json.dumps(devices),
        names.ANNOTATION_UNHEALTHY_DEVICES: ",".join(map(str, range(count))),
    }
    view = node_view({"metadata": {"name": "n1", "annotations": annotations}})
    assert (len(view.devices), len(view.unhealthy)) == ((count, count) if read else (0, 0))
    assert len(view.problems) == (0 if read else 2)


LEFT: list[tuple[str, str, Mapping[str, int], int | None]] = [
    ("less what pods take", RESOURCE, {RESOURCE: 3}, 5),
    ("more than there is is promised", RESOURCE, {RESOURCE: 9}, -1),
    ("of memory too", "memory", {"memory": 30}, 70),
    ("a device that the node has not", OTHER, {}, 0),
    ("a kind of memory that it has not", "hugepages-2Mi", {"hugepages-2Mi": 2}, -2),
    ("what every kubelet states is not known", "cpu", {"cpu": 100}, None),
]


@pytest.mark.parametrize(
    ("resource", "used", "want"), [row[1:] for row in LEFT], ids=[row[0] for row in LEFT]
)
def test_what_is_left_beside_the_devices(
    resource: str, used: Mapping[str, int], want: int | None
) -> None:
    view = NodeView("n", allocatable={RESOURCE: 8}, offers={"memory": 100}, used=used)
    assert view.left(resource) == want


@pytest.mark.parametrize(
    ("allocatable", "unhealthy", "well"),
    [
        ({RESOURCE: 8, OTHER: 2}, (), True),
        ({RESOURCE: 8, OTHER: 2}, (3,), False),
        ({RESOURCE: 7, OTHER: 2}, (), False),
        ({RESOURCE: 8, OTHER: 1}, (), False),
        ({RESOURCE: 8}, (), False),
        ({RESOURCE: 7, OTHER: 2}, (3,), False),
    ],
    ids=["all", "annotation", "one taken back", "one of another", "all of another", "both"],
)
def test_a_node_is_well_while_no_device_of_it_is_unhealthy_or_taken_back(
    allocatable: Mapping[str, int], unhealthy: tuple[int, ...], well: bool
) -> None:
    capacity = {RESOURCE: 8, OTHER: 2}
    view = NodeView("n", capacity=capacity, allocatable=allocatable, unhealthy=frozenset(unhealthy))
    assert view.devices_well is well


@pytest.mark.parametrize(
    ("capacity", "unhealthy", "used", "want"),
    [
        ({RESOURCE: 8}, (0, 1), 0, 6),
        ({RESOURCE: 9}, (0, 1), 0, 7),
        ({RESOURCE: 10}, (0, 1), 3, 5),
        ({RESOURCE: 12}, (0, 1), 3, 5),
        ({}, (0, 1), 0, 6),
        ({RESOURCE: 8}, (0, 1), 7, 0),
        ({RESOURCE: 4}, (0, 1), 0, 6),
    ],
)
def test_an_unhealthy_device_counts_once_whatever_takes_it_out(
    capacity: Mapping[str, int], unhealthy: tuple[int, ...], used: int, want: int
) -> None:
    view = NodeView(
        "n", capacity=capacity, allocatable={RESOURCE: 8}, used={RESOURCE: used},
        unhealthy=frozenset(unhealthy),
    )  # fmt: skip
    assert view.free(RESOURCE) == want


@pytest.mark.parametrize(
    ("more", "want"),
    [
        ({}, "n7"),
        ({"nodeName": None}, "n7"),
        ({"nodeName": "n7"}, None),
        ({"affinity": None}, None),
    ],
    ids=["pinned", "not bound", "bound", "not pinned"],
)
def test_a_promise_stands_until_its_pod_is_bound(more: dict[str, Any], want: str | None) -> None:
    pod = {
        "metadata": {"name": "p"},
        "spec": {"affinity": {"nodeAffinity": pin_to("n7")}, **more},
    }
    assert {r.node for r in reservation_of(pod_view(pod))} == ({want} if want else set())
    assert reservation_of(PodView("p")) == ()
