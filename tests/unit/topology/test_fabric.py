"""Nodes and the tree, from raw Kubernetes objects."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.support.builders import LABELS, LEVELS, RESOURCE, fabric

from pdserve.terms import Device
from pdserve.topology import (
    FabricLevel,
    NodeView,
    Reservation,
    Taint,
    Toleration,
    TreeSpec,
    build_fabric,
    node_view,
    pod_view,
    reservation_of,
    summarise,
)
from pdserve.topology.obstacle import Obstacle, ObstacleKind
from pdserve.wire import names


def raw_node(**changes: Any) -> dict[str, Any]:
    node: dict[str, Any] = {
        "metadata": {"name": "n1", "uid": "u1", "labels": {"a": "b"}, "annotations": {}},
        "spec": {},
        "status": {
            "capacity": {RESOURCE: "8", "cpu": "64"},
            "allocatable": {RESOURCE: "8", "cpu": "64", "hugepages-2Mi": "0"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
    for path, value in changes.items():
        section, key = path.split("__")
        node[section][key] = value
    return node


def raw_pod(devices: int, phase: str = "Running", node: str | None = "n1") -> dict[str, Any]:
    return {
        "metadata": {"name": f"p{devices}"},
        "spec": {
            "nodeName": node,
            "containers": [{"resources": {"limits": {RESOURCE: str(devices), "cpu": "1"}}}],
        },
        "status": {"phase": phase},
    }


def test_free_is_allocatable_less_what_pods_that_run_hold() -> None:
    view = node_view(raw_node(), map(pod_view, [raw_pod(2), raw_pod(1), raw_pod(4, "Succeeded")]))
    assert view.free(RESOURCE) == 5
    assert view.used == {RESOURCE: 3, "cpu": 2000, "pods": 2}
    assert "cpu" not in view.allocatable and "hugepages-2Mi" not in view.allocatable
    assert view.blocked() is None


def taint(key: str, effect: str) -> dict[str, str]:
    return {"key": key, "effect": effect}


@pytest.mark.parametrize(
    ("allocatable", "want"),
    [("8", 6), ("7", 6), ("6", 6), ("5", 5)],
    ids=["plugin unaware", "plugin took one out", "plugin took both out", "plugin took out more"],
)
def test_unhealthy_devices_are_not_counted_twice(allocatable: str, want: int) -> None:
    node = raw_node(metadata__annotations={names.ANNOTATION_UNHEALTHY_DEVICES: "0, 3"})
    node["status"]["allocatable"][RESOURCE] = allocatable
    assert node_view(node).free(RESOURCE) == want


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        ({"status__conditions": [{"type": "Ready", "status": "Unknown"}]}, "NotReady"),
        ({"status__conditions": []}, "NotReady"),
        ({"spec__unschedulable": True}, "Unschedulable"),
        ({"spec__taints": [{"key": "k", "effect": "NoSchedule"}]}, "Taint k:NoSchedule"),
        ({"spec__taints": [{"key": "k", "effect": "NoExecute"}]}, "Taint k:NoExecute"),
        ({"spec__taints": [{"key": "k", "effect": "PreferNoSchedule"}]}, None),
    ],
)
def test_what_blocks_a_node(changes: dict[str, Any], want: str | None) -> None:
    obstacle = node_view(raw_node(**changes)).blocked()
    assert (obstacle and obstacle.text) == want


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        ({"status__conditions": []}, False),
        ({"spec__taints": [taint("node.kubernetes.io/unreachable", "NoSchedule")]}, False),
        ({"spec__taints": [taint("node.kubernetes.io/not-ready", "NoExecute")]}, False),
        ({"spec__unschedulable": True}, True),
        ({"spec__taints": [taint("maintenance", "NoSchedule")]}, True),
    ],
)
def test_only_what_a_user_asked_for_may_empty_a_node(changes: dict[str, Any], want: bool) -> None:
    obstacle = node_view(raw_node(**changes)).blocked()
    assert obstacle is not None
    assert obstacle.may_empty == want


@pytest.mark.parametrize("kind", ["outside", "cordoned"])
def test_a_node_that_left_its_part_of_the_fabric_may_be_emptied(kind: ObstacleKind) -> None:
    assert Obstacle(kind, "").may_empty


@pytest.mark.parametrize(
    ("toleration", "want"),
    [
        (Toleration("k", "Equal", "v", "NoSchedule"), True),
        (Toleration("k", "Equal", "v"), True),
        (Toleration("k", "Exists"), True),
        (Toleration(operator="Exists"), True),
        (Toleration("k", "Equal", "other"), False),
        (Toleration("k", "Exists", effect="NoExecute"), False),
        (Toleration("other", "Exists"), False),
        (Toleration("other", "Equal", "v"), False),
        (Toleration("", "Equal", "v"), True),
        (Toleration("k", "Near", "v"), False),
        (Toleration(), False),
    ],
)
def test_tolerations_follow_kubernetes(toleration: Toleration, want: bool) -> None:
    assert toleration.tolerates(Taint("k", "v", "NoSchedule")) is want


def test_roce_devices_come_in_device_order() -> None:
    text = '[{"id": 1, "ip": "10.0.0.2"}, {"id": 0, "ip": "10.0.0.1"}]'
    view = node_view(raw_node(metadata__annotations={names.ANNOTATION_ROCE_DEVICES: text}))
    assert view.devices == (Device(0, "10.0.0.1"), Device(1, "10.0.0.2"))


@pytest.mark.parametrize(
    "ip", ["host.example", "10.1", "10.0.0.1:5600", "fd00::1/64", "", "0" * 50]
)
def test_what_is_no_ip_address_is_reported_and_taken_for_unknown(ip: str) -> None:
    text = json.dumps([{"id": 1, "ip": "fd00::2"}, {"id": 0, "ip": ip}])
    view = node_view(raw_node(metadata__annotations={names.ANNOTATION_ROCE_DEVICES: text}))
    assert view.devices == (Device(0), Device(1, "fd00::2"))
    assert view.problems == (
        f"annotation {names.ANNOTATION_ROCE_DEVICES}: no IP address: {ip!r} of device 0",
    )


@pytest.mark.parametrize(
    ("annotation", "text", "says"),
    [
        (names.ANNOTATION_ROCE_DEVICES, "{", "want a JSON list"),
        (names.ANNOTATION_ROCE_DEVICES, '[{"ip": "10.0.0.1"}]', "want a JSON list"),
        (names.ANNOTATION_ROCE_DEVICES, '[{"id": 1e999}]', "want a JSON list"),
        (names.ANNOTATION_ROCE_DEVICES, '[{"id": 1e400, "ip": []}]', "want a JSON list"),
        (names.ANNOTATION_ROCE_DEVICES, '[{"id": 0, "ip": {"a": 1}}]', "want a string, got dict"),
        (names.ANNOTATION_ROCE_DEVICES, '[{"id": -1}]', "want a whole number"),
        (names.ANNOTATION_ROCE_DEVICES, "[" * 100_000, "want a JSON list"),
        (names.ANNOTATION_UNHEALTHY_DEVICES, "npu-1", "like \"0,3\", got 'npu-1'"),
        (names.ANNOTATION_UNHEALTHY_DEVICES, "9" * 5000, "want comma-separated"),
        (names.ANNOTATION_UNHEALTHY_DEVICES, "1," * 5000 + "1", "want comma-separated"),
    ],
)
def test_a_bad_annotation_is_reported_not_raised(annotation: str, text: str, says: str) -> None:
    view = node_view(raw_node(metadata__annotations={annotation: text}))
    assert says in view.problems[0]
    assert annotation in view.problems[0]
    assert view.free(RESOURCE) == 8


@pytest.mark.parametrize(
    ("stated", "held", "offered"),
    [
        ("1e3", 1000, 1000), ("1k", 1000, 1000), ("1T", 10**12, 10**12), ("1Ti", 2**40, 2**40),
        ("4E0", 4, 4), ("8000m", 8, 8), (8, 8, 8), (8.0, 8, 8), ("1e999", 2**63 - 1, 2**63 - 1),
        # A part of a device is a whole one to its pod, and none to its next holder.
        ("1500m", 2, 1), ("0.5", 1, 0), ("1u", 1, 0), ("1n", 1, 0),
        ("-3", 0, 0), ("nonsense", 0, 0), ("", 0, 0), (None, 0, 0), ([8], 0, 0), ({}, 0, 0),
        (True, 0, 0), ("9" * 5000, 0, 0), ("1e" + "9" * 50, 0, 0),
    ],
)  # fmt: skip
def test_any_quantity_is_counted_or_skipped(stated: Any, held: int, offered: int) -> None:
    pod = raw_pod(1)
    pod["spec"]["containers"] = [
        {"resources": {"limits": {"example.com/x": stated, RESOURCE: "2"}}},
        {"resources": {"requests": {"example.com/x": stated}}},
    ]
    assert pod_view(pod).devices.get("example.com/x", 0) == 2 * held
    assert pod_view(pod).devices[RESOURCE] == 2
    amounts = {"example.com/x": stated, RESOURCE: "8"}
    view = node_view(
        raw_node(status__capacity=amounts, status__allocatable=amounts), [pod_view(pod)]
    )
    assert view.allocatable.get("example.com/x", 0) == offered
    assert view.free(RESOURCE) == 6
    assert all("example.com/x" in problem and len(problem) < 200 for problem in view.problems)
    assert bool(view.problems) == (held != offered or offered == 0)


def test_sidecars_and_init_containers_count_as_kubernetes_counts_them() -> None:
    def container(count: int, **more: Any) -> dict[str, Any]:
        return {"resources": {"requests": {RESOURCE: count}}, **more}

    pod = {
        "metadata": {"name": "p"},
        "spec": {
            "initContainers": [container(1, restartPolicy="Always"), container(4)],
            "containers": [container(2)],
        },
    }
    assert pod_view(pod).devices == {RESOURCE: 5}


def test_a_pinned_pod_reserves_until_it_is_bound() -> None:
    pod = raw_pod(2, "Pending", node=None)
    assert reservation_of(pod_view(pod)) == ()
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n7"]}]}
    required = {"nodeSelectorTerms": [term]}
    pod["spec"]["affinity"] = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}
    }
    assert reservation_of(pod_view(pod)) == (
        Reservation("p2", "n7", "cpu", 1000),
        Reservation("p2", "n7", RESOURCE, 2),
        Reservation("p2", "n7", "pods", 1),
    )
    pod["spec"]["nodeName"] = "n7"
    assert reservation_of(pod_view(pod)) == ()


def test_leaf_names_may_repeat_and_are_distinguished() -> None:
    tree = fabric("""p1 leaf-0  n1:8
                     p2 leaf-0  m1:8
                     p2 leaf-1  m2:8""")
    assert list(tree.leaves) == [("p1", "leaf-0"), ("p2", "leaf-0"), ("p2", "leaf-1")]
    assert tree.label(("p1", "leaf-0")) == "p1/leaf-0"
    assert tree.label(("p2", "leaf-1")) == "leaf-1"
    assert tree.place_of("m1") == {"pod": "p2", "leaf": "leaf-0"}
    (problem,) = tree.problems
    assert problem.kind == "SeveralParents"
    assert "leaf 'leaf-0' appears under 2 pods: p1, p2" in problem.message


def unlabelled() -> list[NodeView]:
    return [
        NodeView("n1", labels={LABELS[0]: "p1", LABELS[1]: "a"}, allocatable={RESOURCE: 8}),
        NodeView("n2", labels={LABELS[0]: "p1"}, allocatable={RESOURCE: 8}),
    ]


def test_nodes_without_labels_are_excluded_and_named() -> None:
    tree = build_fabric(TreeSpec("d", LEVELS), unlabelled())
    assert tree.excluded == {"n2": f"label {LABELS[1]} missing"}
    assert tree.free("n2", RESOURCE) == 0
    assert tree.blocked("n2") == Obstacle("outside", f"label {LABELS[1]} missing")
    summary = summarise(tree)
    assert summary.labels_complete == (f"label {LABELS[1]} missing on n2",)
    assert (summary.nodes_total, summary.nodes_ready, summary.nodes_excluded) == (2, 1, 1)
    assert summary.free == ((RESOURCE, 8),)


def test_or_each_in_a_part_of_its_own() -> None:
    tree = build_fabric(TreeSpec("d", LEVELS, missing="UnknownDomain"), unlabelled())
    assert tree.place_of("n2") == {"pod": "p1", "leaf": "unknown-n2"}
    far = NodeView("x" * 80, allocatable={RESOURCE: 8})
    other = build_fabric(TreeSpec("d", LEVELS, missing="UnknownDomain"), [far])
    assert all(len(value) <= 63 for value in other.place_of("x" * 80).values())
    assert summarise(tree).labels_complete
    assert summarise(tree).free == ((RESOURCE, 16),)


def test_only_selected_nodes_belong() -> None:
    spec = TreeSpec("d", LEVELS, selector={"pool": "npu"})
    chosen = NodeView("n1", labels={LABELS[0]: "p", LABELS[1]: "a", "pool": "npu"})
    tree = build_fabric(spec, [chosen, NodeView("n2", labels={LABELS[0]: "p", LABELS[1]: "a"})])
    assert list(tree.nodes) == ["n1"]
    assert tree.blocked("n2") == Obstacle("outside", "not in the RoCEDomain")


def test_version_follows_the_topology_not_the_load() -> None:
    one = fabric("p1 a  n1:8 n2:8")
    assert fabric("p1 a  n2:0/8 n1:3/8").version == one.version
    assert fabric("p1 a  n1:8\np1 b  n2:8").version != one.version
    dearer = TreeSpec("test", (LEVELS[0], FabricLevel("leaf", LABELS[1], 2)))
    assert build_fabric(dearer, []).version != build_fabric(TreeSpec("test", LEVELS), []).version


def test_reserve_leaves_the_first_view_as_it_was() -> None:
    tree = fabric("p1 a  n1:8")
    less = tree.reserve([Reservation("p", "n1", RESOURCE, 5)])
    assert (tree.free("n1", RESOURCE), less.free("n1", RESOURCE)) == (8, 3)
    assert less.release([Reservation("p", "n1", RESOURCE, 5)]).free("n1", RESOURCE) == 8
    assert less.version == tree.version


def test_a_hostname_level_is_below_the_leaf() -> None:
    levels = (*LEVELS, FabricLevel("node", "kubernetes.io/hostname", 0))
    labels = {LABELS[0]: "p", LABELS[1]: "a", "kubernetes.io/hostname": "n1"}
    tree = build_fabric(TreeSpec("d", levels), [NodeView("n1", labels=labels)])
    assert list(tree.leaves) == [("p", "a")]
    assert tree.place_of("n1") == {"pod": "p", "leaf": "a", "node": "n1"}


def test_cordoned_parts_say_so() -> None:
    tree = fabric("p1 a  n1:8\np1 b  m1:8", cordoned=[("leaf", "a")])
    assert tree.blocked("n1") == Obstacle("cordoned", "Cordoned leaf a")
    assert summarise(tree).free == ((RESOURCE, 8),)


@pytest.mark.parametrize("value", [{"a": 1}, ["x"], 5, None, True])
def test_a_label_that_is_not_text_costs_its_node_a_level_and_the_others_nothing(
    value: Any,
) -> None:
    labels = {LABELS[0]: "p", LABELS[1]: "l"}
    good = node_view(raw_node(metadata__labels=labels))
    odd = node_view(raw_node(metadata__name="n2", metadata__labels={**labels, LABELS[1]: value}))
    tree = build_fabric(TreeSpec("d", LEVELS), [good, odd])
    assert tree.blocked("n1") is None
    assert tree.excluded == {"n2": f"label {LABELS[1]} missing"}
    assert any(f"label {LABELS[1]}:" in problem for problem in odd.problems)
