"""The tree asked for parts, names and changes; one row per rule."""

from __future__ import annotations

import re

import pytest
from tests.support.builders import LABELS, LEVELS, RESOURCE, SPEC, draw, fabric

from pdserve.api import RoCEDomain
from pdserve.topology import (
    FabricLevel,
    NodeView,
    Reservation,
    TreeSpec,
    build_fabric,
    fabric_spec,
    summarise,
)
from pdserve.topology.obstacle import Obstacle

THREE = (
    FabricLevel("site", "example.com/site", 9),
    FabricLevel("pod", "example.com/pod", 3),
    FabricLevel("leaf", "example.com/leaf", 1),
)
HOST = FabricLevel("node", "kubernetes.io/hostname", 0)


def three(*paths: str) -> list[NodeView]:
    """Nodes n0, n1, ... at `site/pod/leaf`."""
    return [
        NodeView(
            f"n{k}",
            labels=dict(zip((v.node_label for v in THREE), path.split("/"), strict=True)),
        )
        for k, path in enumerate(paths)
    ]


@pytest.mark.parametrize(
    ("levels", "want"),
    [
        (LEVELS, 2),
        (LEVELS[:1], 1),
        ((*LEVELS, HOST), 2),
        ((HOST,), 1),
        ((HOST, LEVELS[1]), 2),
    ],
    ids=["all", "one", "less the node", "the node alone is a leaf", "only the last"],
)
def test_how_many_levels_lead_to_a_leaf(levels: tuple[FabricLevel, ...], want: int) -> None:
    assert TreeSpec("d", levels).leaf_depth == want


def test_levels_are_found_by_name_and_priced() -> None:
    spec = TreeSpec("d", THREE)
    assert [spec.depth_of(level) for level in ("site", "pod", "leaf", "rack")] == [1, 2, 3, None]
    assert spec.tier_costs == {"site": 9, "pod": 3, "leaf": 1}


def test_a_domain_is_read_with_its_levels_selector_and_cordons() -> None:
    domain = RoCEDomain.model_validate(
        {
            "metadata": {"name": "dc"},
            "spec": {
                "nodeSelector": {"matchLabels": {"pool": "npu"}},
                "levels": [
                    {"name": "pod", "nodeLabel": LABELS[0], "hopCost": 3},
                    {"name": "leaf", "nodeLabel": LABELS[1], "hopCost": 1},
                ],
                "overrides": [
                    {"level": "leaf", "value": "a", "cordoned": True},
                    {"level": "leaf", "value": "b", "cordoned": False},
                ],
                "missingLabelPolicy": "UnknownDomain",
            },
        }
    )
    cordoned = frozenset({("leaf", "a")})
    want = TreeSpec("dc", LEVELS, {"pool": "npu"}, cordoned, "UnknownDomain")
    assert fabric_spec(domain) == want
    spec = domain.spec.model_copy(update={"missing_label_policy": "Exclude"})
    assert fabric_spec(domain.model_copy(update={"spec": spec})).missing == "Exclude"


NAMES = [
    ("its own value", ["s/p/a", "s/p/b"], "s/p/a", "a"),
    ("the same leaf under two pods", ["s/p/a", "s/q/a"], "s/p/a", "s/p/a"),
    ("two nodes of one leaf", ["s/p/a", "s/p/a"], "s/p/a", "a"),
    ("a pod whose leaf names repeat", ["s/p/a", "s/q/a"], "s/p", "p"),
    ("the same pod under two sites", ["s/p/a", "t/p/b"], "s/p", "s/p"),
    ("a leaf of such pods", ["s/p/a", "t/p/b"], "s/p/a", "a"),
    ("the same word at two levels", ["s/p/p", "s/q/b"], "s/p", "p"),
    ("the domain", ["s/p/a"], "", "the whole domain"),
]


@pytest.mark.parametrize(
    ("nodes", "path", "want"), [row[1:] for row in NAMES], ids=[row[0] for row in NAMES]
)
def test_a_part_goes_by_the_shortest_name_that_no_other_has(
    nodes: list[str], path: str, want: str
) -> None:
    tree = build_fabric(TreeSpec("d", THREE), three(*nodes))
    for _ in range(2):
        assert tree.label(tuple(path.split("/")) if path else ()) == want


def test_where_a_node_is() -> None:
    tree = build_fabric(TreeSpec("d", (*THREE[1:], HOST)), [
        NodeView("n", labels={v.node_label: v.name for v in (*THREE[1:], HOST)})
    ])  # fmt: skip
    assert tree.path("n") == ("pod", "leaf", "node")
    assert tree.leaf("n") == ("pod", "leaf")
    assert tree.place_of("n") == {"pod": "pod", "leaf": "leaf", "node": "node"}
    assert (tree.path("x"), tree.leaf("x"), dict(tree.place_of("x"))) == (None, None, {})
    assert tree.parts == {(): (("pod", "leaf"),), ("pod",): (("pod", "leaf"),)}


def test_leaves_parts_and_nodes_come_in_order_whatever_the_order_of_the_nodes() -> None:
    nodes = draw("p2 a  z:1 b:1\np1 c  y:1\np1 a  x:1")
    trees = [build_fabric(SPEC, order) for order in (nodes, nodes[::-1])]
    for tree in trees:
        assert list(tree.leaves.items()) == [
            (("p1", "a"), ("x",)),
            (("p1", "c"), ("y",)),
            (("p2", "a"), ("b", "z")),
        ]
        assert list(tree.parts) == [(), ("p1",), ("p2",)]
    assert trees[0].version == trees[1].version


@pytest.mark.parametrize(
    "levels",
    [
        (FabricLevel("row", LABELS[0], 3), LEVELS[1]),
        (FabricLevel("pod", "example.com/row", 3), LEVELS[1]),
        (FabricLevel("pod", LABELS[0], 4), LEVELS[1]),
        LEVELS[::-1],
    ],
    ids=["name", "label", "cost", "order"],
)
def test_the_version_follows_what_is_declared_of_each_level(
    levels: tuple[FabricLevel, ...],
) -> None:
    assert build_fabric(TreeSpec("d", levels), []).version != build_fabric(SPEC, []).version


@pytest.mark.parametrize(("held", "promised"), [(1, 1), (1, 0), (0, 1), (2, 0)])
def test_what_is_left_and_a_port_count_what_is_held_and_what_is_promised(
    held: int, promised: int
) -> None:
    port, nic = "hostport:80:TCP", "example.com/nic"
    (node,) = draw("p1 a  n1:8")
    used = {port: held, nic: held}
    view = NodeView("n1", labels=node.labels, allocatable={nic: 5}, used=used)
    promises = [Reservation("x", "n1", resource, promised) for resource in (port, nic)]
    tree = build_fabric(SPEC, [view], promises)
    assert not tree.has_port("n1", f"{port}@0.0.0.0")
    assert tree.left("n1", nic) == 5 - held - promised
    assert tree.left("n1", "cpu") is None, "not known"
    assert tree.left("nowhere", nic) == 0


@pytest.mark.parametrize(
    ("count", "want"),
    [
        (1, "n0"),
        (5, "n0, n1, n2, n3, n4"),
        (6, "n0, n1, n2, n3, n4 and 1 more nodes"),
        (9, "n0, n1, n2, n3, n4 and 4 more nodes"),
    ],
)
def test_of_many_nodes_without_a_label_five_are_named(count: int, want: str) -> None:
    nodes = [NodeView(f"n{k}", labels={LABELS[0]: "p"}) for k in range(count)]
    (problem,) = build_fabric(SPEC, nodes).problems
    assert problem.message == f"label {LABELS[1]} missing on {want}"


def test_every_label_that_is_missing_is_reported_in_order() -> None:
    nodes = [NodeView("n1"), NodeView("n2", labels={LABELS[0]: "p"}), NodeView("n3")]
    tree = build_fabric(SPEC, nodes[::-1])
    assert list(tree.nodes) == ["n1", "n2", "n3"]
    assert [p.message for p in tree.problems] == [
        f"label {LABELS[1]} missing on n1, n2, n3",
        f"label {LABELS[0]} missing on n1, n3",
    ]
    assert dict(tree.excluded) == {
        "n1": f"label {LABELS[0]} missing",
        "n2": f"label {LABELS[1]} missing",
        "n3": f"label {LABELS[0]} missing",
    }


@pytest.mark.parametrize(
    ("paths", "want"),
    [
        (["s/p/a", "s/p/b"], []),
        (["s/p/a", "s/q/a"], ["leaf 'a' appears under 2 pods: s/p, s/q"]),
        (["t/p/b", "s/p/a"], ["pod 'p' appears under 2 sites: s, t"]),
        (
            ["t/p/a", "s/p/a"],
            ["pod 'p' appears under 2 sites: s, t", "leaf 'a' appears under 2 pods: s/p, t/p"],
        ),
        (
            ["s/q/b", "s/p/b", "s/q/a", "s/p/a"],
            [
                "leaf 'a' appears under 2 pods: s/p, s/q",
                "leaf 'b' appears under 2 pods: s/p, s/q",
            ],
        ),
    ],
)
def test_a_name_under_several_parents_is_reported_at_each_level(
    paths: list[str], want: list[str]
) -> None:
    found = build_fabric(TreeSpec("d", THREE), three(*paths)).problems
    assert [p.message.partition(";")[0] for p in found] == want


@pytest.mark.parametrize(("length", "kept"), [(1, True), (55, True), (56, False), (253, False)])
def test_a_node_of_unknown_position_has_a_part_whose_name_fits_a_label(
    length: int, kept: bool
) -> None:
    name, other = "n" * length, "m" * length
    spec = TreeSpec("d", LEVELS, missing="UnknownDomain")
    tree = build_fabric(spec, [NodeView(name), NodeView(other)])
    (value,) = set(tree.place_of(name).values())
    assert len(value) <= 63
    assert value == f"unknown-{name}" if kept else re.fullmatch("unknown-[0-9a-f]{16}", value)
    assert len(tree.leaves) == 2, "as far apart as can be"


def test_a_node_is_blocked_by_its_part_first_at_any_level() -> None:
    for level, value in (("pod", "p1"), ("leaf", "a")):
        tree = fabric("p1 a  n1:8!NotReady\np2 b  m1:8", cordoned=[(level, value)])
        assert tree.blocked("n1") == Obstacle("cordoned", f"Cordoned {level} {value}")
        assert tree.blocked("m1") is None
    assert fabric("p1 a  n1:8", cordoned=[("leaf", "p1")]).blocked("n1") is None
    assert fabric("p1 a  n1:8!NotReady").blocked("n1") == Obstacle("not-ready", "NotReady")


def test_nodes_renewed_stand_as_they_are_now_with_the_new_promises_alone() -> None:
    before = fabric("p1 a  n1:8 n2:8").reserve([Reservation("x", "n2", RESOURCE, 8)])
    (now,) = draw("p1 a  n1:2/8")
    after = before.renewed({"n1": now}, {("n1", RESOURCE): 1})
    assert [after.free(n, RESOURCE) for n in ("n1", "n2")] == [1, 8]
    assert [before.free(n, RESOURCE) for n in ("n1", "n2")] == [8, 0]
    assert after.tree is before.tree


def test_promises_of_one_node_add_up_resource_by_resource() -> None:
    promises = [
        Reservation("x", "n1", RESOURCE, 2),
        Reservation("y", "n1", RESOURCE, 3),
        Reservation("y", "n1", "cpu", 7),
        Reservation("z", "n2", RESOURCE, 1),
    ]
    tree = build_fabric(SPEC, draw("p1 a  n1:8 n2:8"), promises)
    assert [tree.free(n, RESOURCE) for n in ("n1", "n2")] == [3, 7]


def test_the_summary_counts_what_a_new_instance_could_take() -> None:
    (labelled,) = draw("p1 a  n0:8")
    sick = NodeView(
        "n5", labels=labelled.labels, capacity={RESOURCE: 4, "example.com/nic": 2},
        allocatable={RESOURCE: 4, "example.com/nic": 2}, unhealthy=frozenset({0, 3}),
        problems=("label x: 5 is not text",),
    )  # fmt: skip
    lost = NodeView("n6", allocatable={RESOURCE: 8}, unhealthy=frozenset({1}), problems=("bad",))
    nodes = [*draw("p1 a  n1:3/8 n2:8!NotReady\np1 b  n3:8!Tainted\np2 c  n4:1"), sick, lost]
    found = summarise(build_fabric(SPEC, nodes))
    assert found.nodes_total == 6
    assert found.nodes_ready == 4, "in the tree"
    assert found.nodes_excluded == 1
    assert found.unhealthy_devices == 2, "in the tree"
    assert [(v.name, v.domains) for v in found.levels] == [("pod", 2), ("leaf", 3)]
    assert found.free == (("example.com/nic", 0), (RESOURCE, 6))
    assert found.node_problems == ("node n5: label x: 5 is not text", "node n6: bad")
    assert len(found.labels_complete) == 2
    assert found.tree_consistent == ()
    assert re.fullmatch("sha256:[0-9a-f]{16}", found.topology_version)


def test_the_summary_reports_names_under_several_parents() -> None:
    found = summarise(fabric("p1 a  n1:8\np2 a  m1:8"))
    assert found.labels_complete == ()
    (said,) = found.tree_consistent
    assert said.startswith("leaf 'a' appears under 2 pods: p1, p2")
