"""Which devices a pod holds and where they are reached, and when a table tells it anew."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from tests.support.builders import fabric
from tests.support.group_world import wanted
from tests.unit.groups.test_health import RESOURCE, node, pod
from tests.unit.groups.test_links_and_routes import instance, table

from pdserve.groups import types as t
from pdserve.groups.devices import MAX_NETWORKS, devices_of, pod_addresses
from pdserve.groups.tables import publish_table
from pdserve.groups.view import GroupView, PlanDraft
from pdserve.terms import Device
from pdserve.topology import PodView, node_view, pod_view
from pdserve.wire import names
from pdserve.wire.peers import FULL_BYTES, PeerNode, PeerTable

POD_NETWORK = {"name": "cbr0", "interface": "eth0", "ips": ["10.9.0.4"], "default": True}


def rail(number: int, *ips: str) -> dict[str, object]:
    return {"name": f"fabric/rail-{number}", "interface": f"net{number}", "ips": list(ips)}


def with_networks(status: object, devices: int = 8, **more: Any) -> PodView:
    made = pod(devices=devices, **more)
    text = status if isinstance(status, str) else json.dumps(status)
    made["metadata"]["annotations"] = {names.ANNOTATION_NETWORK_STATUS: text}
    return pod_view(made)


OF_THE_POD: dict[str, tuple[object, tuple[str, ...]]] = {
    "one of each rail": (
        [POD_NETWORK, rail(1, "10.1.0.4"), rail(2, "10.2.0.4")], ("10.1.0.4", "10.2.0.4"),
    ),
    "dual stack: the first": ([rail(1, "10.1.0.4", "fd00:1::4")], ("10.1.0.4",)),
    "IPv6": ([rail(1, "FD00:1::4")], ("fd00:1::4",)),
    "without an address": ([rail(1), rail(2, "10.2.0.4")], ("10.2.0.4",)),
    "the pod's own network alone": ([POD_NETWORK], ()),
    "no list": ({"ips": ["10.1.0.4"]}, ()),
    "no objects": (["10.1.0.4"], ()),
    "no address": ([rail(1, "10.1.0.4/24")], ()),
    "a name": ([rail(1, "host.example")], ()),
    "a number": ([{"name": "x", "ips": [1e300]}], ()),
    "not JSON": ("[" * 100_000, ()),
    "not finite": ('[{"ips": [1e999]}]', ()),
    "too many": ([rail(i, f"10.1.0.{i}") for i in range(MAX_NETWORKS + 1)], ()),
}  # fmt: skip


@pytest.mark.parametrize("case", OF_THE_POD)
def test_addresses_of_a_pods_own_networks(case: str) -> None:
    status, want = OF_THE_POD[case]
    assert pod_addresses(with_networks(status)) == want


def test_a_pods_own_networks_come_before_its_nodes_annotation() -> None:
    found = devices_of(with_networks([POD_NETWORK, rail(1, "10.1.0.4")]), node_view(node()))
    assert found == (Device(0, "10.1.0.4"),)
    assert devices_of(with_networks([POD_NETWORK]), node_view(node())) == (
        Device(0),
        Device(1, "10.0.0.2"),
    )


def test_networks_get_the_ids_of_the_devices_where_there_are_as_many() -> None:
    entries = [{"resourceID": f"npu-{i}"} for i in (5, 4)]
    told = [{"name": RESOURCE, "resources": entries}]
    rails = [rail(1, "10.1.0.4"), rail(2, "10.2.0.4")]
    made = with_networks(rails, devices=2, allocatedResourcesStatus=told)
    assert devices_of(made, node_view(node())) == (Device(4, "10.1.0.4"), Device(5, "10.2.0.4"))
    assert devices_of(made, None) == (Device(4, "10.1.0.4"), Device(5, "10.2.0.4"))


OLD, NEW = (Device(0, "10.1.0.4"),), (Device(0, "10.1.0.5"),)


def held(devices: Sequence[Device], node_name: str = "n1") -> PeerTable:
    """Table 3 of p0 and d0, the prefill with these devices."""
    costs = fabric("p1 a  n1:8").spec.tier_costs
    p0, d0 = table(instance("p0"), instance("d0")).instances
    p0 = replace(p0, nodes=(PeerNode(node_name, tuple(devices)),))
    return PeerTable("g-0", 3, (p0, d0), costs)


def published(before: PeerTable, devices: Sequence[Device]) -> PeerTable | None:
    """What follows a table once the prefill's devices are known to be these."""
    p0, d0 = instance("p0"), instance("d0")
    p0 = replace(p0, members=(replace(p0.members[0], devices=tuple(devices)),))
    seen = t.Observation(wanted("1P1D"), (p0, d0), {0: before}, {}, {}, (), frozenset(), 0.0)
    draft = PlanDraft(fabric("p1 a  n1:8"))
    publish_table(GroupView(0, (p0, d0), before), seen, draft)
    return next((a.table for a in draft.actions if isinstance(a, t.PublishTable)), None)


TOLD_ANEW: dict[str, tuple[Sequence[Device], Sequence[Device], Sequence[Device] | None]] = {
    "the same": (OLD, OLD, None),
    "other addresses": (OLD, NEW, NEW),
    "known late": ((Device(0),), NEW, NEW),
    "not known at the moment": (OLD, (), None),
    "devices without addresses at the moment": (OLD, (Device(0),), None),
}


@pytest.mark.parametrize("case", TOLD_ANEW)
def test_a_table_follows_what_becomes_known_of_devices(case: str) -> None:
    before, now, want = TOLD_ANEW[case]
    found = published(held(before), now)
    if want is None:
        assert found is None
        return
    assert found is not None
    assert found.version == 4
    assert found.instances[0].nodes == (PeerNode("n1", tuple(want)),)
    assert replace(found.instances[0], nodes=()) == replace(held(before).instances[0], nodes=())


def test_a_table_that_had_to_leave_devices_out_is_not_published_again_and_again() -> None:
    many = tuple(Device(i % 65_536, f"fd00::{i:04x}") for i in range(FULL_BYTES // 30))
    bare = held(many).fitted()
    assert bare.instances[0].nodes == (PeerNode("n1"),)
    assert published(bare, many) is None
