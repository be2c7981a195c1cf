"""All that instances take beside devices caps their placement: CPU, memory, ports, labels."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.builders import LABELS, RESOURCE, SPEC

from pdserve.placement import (
    GroupRequest,
    InstancePlacement,
    NoFit,
    PlacedInstance,
    Placement,
    Shape,
    place,
    place_instance,
)
from pdserve.topology import Fabric, NodeView, build_fabric, node_view, pod_view
from pdserve.topology.affinity import terms_of
from pdserve.topology.requests import port_keys

GI = 2**30
NIC = "example.com/nic"


def node(name: str, there: tuple[dict[str, Any], ...] = (), **amounts: Any) -> NodeView:
    """A node of leaf `a` with 8 devices, and more by name; `_` stands for `-`."""
    stated = {RESOURCE: 8, **{r.replace("_", "-"): n for r, n in amounts.items() if r != "nic"}}
    if "nic" in amounts:
        stated[NIC] = amounts["nic"]
    return node_view(
        {
            "metadata": {"name": name, "labels": {LABELS[0]: "x", LABELS[1]: "a", "disk": name}},
            "status": {
                "capacity": stated,
                "allocatable": stated,
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        },
        map(pod_view, there),
    )


def pod(**requests: Any) -> dict[str, Any]:
    """A foreign pod, without devices."""
    container = {"resources": {"requests": requests}}
    return {"metadata": {"name": "p"}, "spec": {"containers": [container]}}


def port(number: int, address: str = "") -> tuple[tuple[str, int], ...]:
    return tuple((key, 1) for key in port_keys("TCP", number, address))


def listening(number: int, address: str = "") -> dict[str, Any]:
    ports = [{"hostPort": number, "hostIP": address}]
    return {"metadata": {"name": "p"}, "spec": {"containers": [{"ports": ports}]}}


def tree(*nodes: NodeView) -> Fabric:
    return build_fabric(SPEC, nodes)


def shape(devices: int = 1, *more: tuple[str, int], **requests: int) -> Shape:
    named = {r.replace("_", "-"): n for r, n in requests.items()}
    return Shape(RESOURCE, devices, requests=(*sorted(named.items()), *more))


def ask(prefill: int, decode: int, p: Shape, d: Shape | None = None) -> GroupRequest:
    return GroupRequest(prefill, decode, p, p if d is None else d)


NODES = ("n1", "n2", "n3")
SMALL = shape(memory=64 * GI)


@pytest.mark.parametrize(
    ("views", "wanted", "on"),
    [
        # Only one of three nodes has what an instance takes.
        pytest.param([node("n1", memory="32Gi"), node("n2", memory="256Gi"), node("n3", memory=1)],
                     SMALL, "n2", id="memory"),
        pytest.param([node("n1", cpu="3"), node("n2", cpu="1"), node("n3", cpu="8")],
                     shape(cpu=4000), "n3", id="cpu"),
        pytest.param([node("n1"), node("n2", ephemeral_storage="1Gi")],
                     shape(ephemeral_storage=GI // 2), "n2", id="ephemeral-storage"),
        pytest.param([node("n1", hugepages_2Mi="0"), node("n2", hugepages_2Mi="1Gi")],
                     shape(hugepages_2Mi=GI // 2), "n2", id="huge pages"),
        pytest.param([node("n1"), node("n2", nic="2")],
                     shape(1, (NIC, 1)), "n2", id="other device"),
        pytest.param([node("n1", (pod(),), pods="1"), node("n2", pods="2")],
                     shape(pods=1), "n2", id="number of pods"),
        # What other people's pods take is gone.
        pytest.param([node("n1", (pod(memory="200Gi"),), memory="256Gi"),
                      node("n2", memory="128Gi")], SMALL, "n2", id="taken memory"),
        pytest.param([node("n1", (listening(8080),)), node("n2"), node("n3")],
                     shape(1, *port(8080)), "n2 n3", id="taken port"),
        pytest.param([node("n1", (listening(8080, "10.0.0.1"),)), node("n2"), node("n3")],
                     shape(1, *port(8080)), "n2 n3", id="taken on one address"),
        pytest.param([node("n1", (listening(8080),)), node("n2"), node("n3")],
                     shape(1, *port(8080, "10.0.0.1")), "n2 n3", id="taken on every address"),
    ],
)  # fmt: skip
def test_only_nodes_with_all_that_is_requested_are_taken(
    views: list[NodeView], wanted: Shape, on: str
) -> None:
    found = place(tree(*views), ask(1, 1, wanted))
    assert isinstance(found, Placement), found
    assert sorted({a.nodes[0] for a in found.assignments}) == on.split()
    one = place_instance(tree(*views), ask(1, 1, wanted), "decode", [])
    assert isinstance(one, InstancePlacement) and one.nodes[0] in on.split()


@pytest.mark.parametrize(
    ("address", "other", "together"),
    [("", "", False), ("", "10.0.0.1", False), ("10.0.0.1", "", False),
     ("10.0.0.1", "10.0.0.1", False), ("10.0.0.1", "10.0.0.2", True)],
)  # fmt: skip
def test_roles_with_one_host_port_do_not_share_a_node(
    address: str, other: str, together: bool
) -> None:
    asked = ask(1, 1, shape(1, *port(80, address)), shape(1, *port(80, other)))
    assert isinstance(place(tree(node("n1")), asked), Placement) is together
    found = place(tree(node("n1"), node("n2")), asked)
    assert isinstance(found, Placement)
    assert together or len({a.nodes[0] for a in found.assignments}) == 2


def test_other_ports_do_not_conflict() -> None:
    views = node("n1", (listening(8080),)), node("n2")
    asked = ask(1, 1, shape(1, *port(80)), shape(1, *port(81)))
    found = place(tree(*views), asked)
    assert isinstance(found, Placement)


def test_memory_is_counted_over_the_whole_group() -> None:
    """Devices for eight on each node, memory for three and for two."""
    views = node("n1", memory="200Gi"), node("n2", memory="128Gi")
    assert isinstance(place(tree(*views), ask(3, 2, SMALL)), Placement)
    refused = place(tree(*views), ask(3, 3, SMALL))
    assert isinstance(refused, NoFit)
    assert "largest P/D group that fits now: 3P2D" in refused.message


def test_what_is_placed_is_taken_from_what_comes_after() -> None:
    fabric = tree(node("n1", memory="200Gi"), node("n2", memory="64Gi"))
    first = place(fabric, ask(2, 1, SMALL))
    assert isinstance(first, Placement)
    after = fabric.reserve(first.reservations)
    members = [PlacedInstance(f"{a.role}{a.ordinal}", a.role, a.nodes) for a in first.assignments]
    more = place_instance(after, ask(2, 1, SMALL), "prefill", members)
    assert isinstance(more, InstancePlacement)
    assert sorted([more.nodes[0], *(a.nodes[0] for a in first.assignments)]) == [
        "n1",
        "n1",
        "n1",
        "n2",
    ]
    full = after.reserve(more.reservations)
    assert isinstance(place_instance(full, ask(2, 1, SMALL), "prefill", members), NoFit)
    assert isinstance(place(full.release(first.reservations), ask(2, 1, SMALL)), Placement)


def test_a_node_that_states_no_cpu_memory_or_pods_is_not_judged_by_them() -> None:
    asked = ask(4, 4, shape(cpu=10**6, memory=10**15, pods=1))
    assert isinstance(place(tree(node("n1")), asked), Placement)


def test_a_demanded_label_is_found_and_told() -> None:
    terms = terms_of({"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "disk", "operator": "In", "values": ["n2"]}]}]})  # fmt: skip
    wanted = Shape(RESOURCE, 1, selector=terms)
    found = place(tree(*map(node, NODES)), ask(1, 1, wanted))
    assert isinstance(found, Placement)
    assert {a.nodes[0] for a in found.assignments} == {"n2"}
    refused = place(tree(node("n1"), node("n3")), ask(1, 1, wanted))
    assert isinstance(refused, NoFit)
    assert "nodes out of use: 2 (the template wants disk=n2)" in refused.message


@pytest.mark.parametrize(
    ("views", "asked", "says"),
    [
        ([node("n1", memory="32Gi"), node("n2", memory="63Gi"), node("n3", memory="64Gi")],
         ask(1, 1, SMALL), "memory: 2 of 3 nodes lack 64Gi"),
        ([node("n1", cpu="1"), node("n2", cpu="2")], ask(1, 1, shape(cpu=500), shape(cpu=2500)),
         "cpu: 2 of 2 nodes lack 2500m for a decode"),
        ([node("n1", (listening(8080),)), node("n2")], ask(1, 1, shape(1, *port(8080))),
         "host port 8080/TCP: 1 of 2 nodes have it taken"),
        ([node("n1")], ask(1, 1, shape(1, *port(8080, "10.0.0.1"), (NIC, 1))),
         "example.com/nic: 1 of 1 nodes lack 1"),
        ([node("n1", (pod(),), pods="1")], ask(1, 1, shape(pods=1)),
         "pods: 1 of 1 nodes lack 1"),
    ],
)  # fmt: skip
def test_what_is_short_is_reported_with_numbers(
    views: list[NodeView], asked: GroupRequest, says: str
) -> None:
    found = place(tree(*views), asked)
    assert isinstance(found, NoFit)
    assert f"; {says}" in found.message
    assert "devices are free on usable nodes" in found.message
    alone = place_instance(tree(views[0]), asked, "decode", [])
    assert isinstance(alone, NoFit)
    assert ": 1 of 1 nodes" in alone.message and "none has" not in alone.message
