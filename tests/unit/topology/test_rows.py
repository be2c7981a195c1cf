"""What of a node is left, which ports conflict, and how demands read: one row per rule."""

from __future__ import annotations

import pytest
from tests.support.builders import LEVELS, RESOURCE, draw, fabric

from pdserve.topology import NodeView, Reservation, TreeSpec, build_fabric, summarise
from pdserve.topology.affinity import term_text, terms_of
from pdserve.topology.requests import (
    is_extended,
    is_port,
    port_conflicts,
    port_keys,
    port_text,
)

ALL = "0.0.0.0"


@pytest.mark.parametrize(
    ("resource", "want"),
    [
        ("example.com/npu", True),
        ("cpu", False),
        ("kubernetes.io/batch-cpu", False),
        ("node.kubernetes.io/x", False),
        ("hugepages-2Mi", False),
    ],
)
def test_which_resources_are_devices(resource: str, want: bool) -> None:
    assert is_extended(resource) is want


@pytest.mark.parametrize(
    ("requirement", "want"),
    [
        (("zone", "In", "z1"), "zone=z1"),
        (("zone", "In", "z1", "z2"), "zone in (z1, z2)"),
        (("zone", "NotIn", "z1"), "zone not in (z1)"),
        (("zone", "Exists"), "zone"),
        (("zone", "DoesNotExist"), "!zone"),
        (("gen", "Gt", "3"), "gen > 3"),
        (("gen", "Lt", "3"), "gen < 3"),
        (("gen", "Near", "3"), "gen Near (3)"),
    ],
    ids=lambda x: x if isinstance(x, str) else " ".join(x),
)
def test_a_demand_reads_as_people_write_it(requirement: tuple[str, ...], want: str) -> None:
    key, operator, *values = requirement
    expression = {"key": key, "operator": operator, "values": values}
    selector = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    (term,) = terms_of(selector)
    assert term_text(term) == want


@pytest.mark.parametrize(
    ("held", "wanted", "free"),
    [
        (ALL, ALL, False),
        (ALL, "10.0.0.1", False),
        ("10.0.0.1", ALL, False),
        ("10.0.0.1", "10.0.0.1", False),
        ("10.0.0.1", "10.0.0.2", True),
        (None, ALL, True),
        (None, "10.0.0.1", True),
    ],
)
@pytest.mark.parametrize("promised", [False, True], ids=["bound", "promised"])
def test_which_host_ports_conflict(
    held: str | None, wanted: str, free: bool, promised: bool
) -> None:
    taken = () if held is None else port_keys("TCP", 80, "" if held == ALL else held)
    (view,) = draw("p1 a  n1:8")
    used = dict(view.used) | ({} if promised else dict.fromkeys(taken, 1))
    tree = build_fabric(
        TreeSpec("test", LEVELS),
        [NodeView("n1", labels=view.labels, allocatable=view.allocatable, used=used)],
        [Reservation("x", "n1", key, 1) for key in (taken if promised else ())],
    )
    key = port_keys("TCP", 80, wanted)[1]
    assert is_port(key)
    assert tree.has_port("n1", key) is free
    assert tree.has_port("n1", port_keys("UDP", 80, wanted)[1])
    assert tree.has_port("n1", port_keys("TCP", 81, wanted)[1])
    assert port_conflicts(port_keys("TCP", 80, wanted)[0]) == (), "it says less"


@pytest.mark.parametrize(
    ("address", "want"), [("", "80/TCP"), (ALL, "80/TCP"), ("10.0.0.1", "80/TCP of 10.0.0.1")]
)
def test_a_port_reads_as_people_write_it(address: str, want: str) -> None:
    assert port_text(port_keys("TCP", 80, address)[1]) == want


@pytest.mark.parametrize(
    ("promised", "want"), [((), 6), ((2,), 4), ((2, 3), 1), ((6,), 0), ((9,), 0)], ids=str
)
def test_what_is_free_is_what_is_left_of_the_promises(promised: tuple[int, ...], want: int) -> None:
    tree = fabric("p1 a  n1:6/8 n2:8")
    later = tree.reserve([Reservation(f"x{k}", "n1", RESOURCE, n) for k, n in enumerate(promised)])
    assert later.free("n1", RESOURCE) == want
    assert later.free("n2", RESOURCE) == 8
    assert later.free("nowhere", RESOURCE) == 0
    assert later.free("n1", "example.com/other") == 0
    assert tree.free("n1", RESOURCE) == 6


def test_a_changed_tree_remembers_nothing_of_the_first_ones() -> None:
    tree = fabric("p1 a  n1:8 n2:8")
    summarise(tree)
    assert tree.memo
    later = tree.reserve([Reservation("x", "n1", RESOURCE, 8)])
    assert later.memo == {}
    assert later.parent is tree
    assert later.changed == {"n1"}
    assert later.release([Reservation("x", "n1", RESOURCE, 8)]).free("n1", RESOURCE) == 8
