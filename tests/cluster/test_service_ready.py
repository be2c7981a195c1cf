"""A PDService comes up: linked instances on the nodes that were planned, both scenarios serving."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import pytest
from tests.support import scenarios as s
from tests.support.groups_at_rest import check_groups
from tests.support.installed import NAMESPACE, SERVICE, Installed

from pdserve.wire import names

pytestmark = pytest.mark.cluster


def test_both_scenarios_are_ready(
    installed: Installed,
    shop_service: Mapping[str, float],
    record_property: Callable[[str, object], None],
) -> None:
    record_property("ready_seconds", round(shop_service["ready_seconds"], 1))
    assert shop_service["ready_seconds"] < s.READY_SECONDS
    status = (s.service(installed.cluster, NAMESPACE, SERVICE) or {})["status"]
    summary = status["summary"]
    assert (summary["scenarios"], summary["prefill"], summary["decode"]) == ("2/2", "3/3", "3/3")
    assert status["url"] == "http://shop-gateway.shop.svc"
    assert status["devices"] == [{"resource": "huawei.com/Ascend910", "used": 6, "budget": 16}]


@pytest.mark.parametrize("scenario", ["search", "chat"])
def test_pods_run_where_they_were_planned_linked_and_labelled(
    installed: Installed, shop_service: Mapping[str, float], scenario: str
) -> None:
    cluster, name = installed.cluster, names.scenario_group_name(SERVICE, scenario)
    s.wait_settled(cluster, NAMESPACE, name)
    found = check_groups(cluster, NAMESPACE, name)
    # Levels of the RoCEDomain are labels of the pod, as the node has them.
    for pod in found:
        node = cluster.get(f"/api/v1/nodes/{pod['spec']['nodeName']}")
        assert node is not None
        for level in ("rack", "leaf"):
            at_node = node["metadata"]["labels"][f"fabric.pdserve.io/{level}"]
            assert pod["metadata"]["labels"][f"{names.TOPOLOGY_PREFIX}{level}"] == at_node
    nodes = {p["spec"]["nodeName"] for p in found}
    assert len(nodes) > 1, "not all of a scenario is lost with one node"
    leaf = "fabric.pdserve.io/leaf"
    workers = cluster.get(f"/api/v1/nodes?labelSelector={leaf}")
    assert workers is not None
    sizes = Counter(node["metadata"]["labels"][leaf] for node in workers["items"])
    leaves = {p["metadata"]["labels"][f"{names.TOPOLOGY_PREFIX}leaf"] for p in found}
    least = 1 if max(sizes.values()) > 1 else 2
    assert len(leaves) == least, "no more leaves than two nodes need"


@pytest.mark.invariant(1)
def test_routes_hold_exactly_the_linked_instances_of_the_peer_table(
    installed: Installed, shop_service: Mapping[str, float]
) -> None:
    cluster = installed.cluster
    instances = s.pods(cluster, NAMESPACE, service=SERVICE)
    found = {s.name_of(p) for p in instances}
    assert s.routed(cluster, NAMESPACE, SERVICE) == found
    labels = [pod["metadata"]["labels"] for pod in instances]
    groups = {(at[names.LABEL_SCENARIO], int(at[names.LABEL_GROUP_INDEX])) for at in labels}
    in_tables = set()
    for scenario, index in groups:
        group_name = names.scenario_group_name(SERVICE, scenario)
        name = names.peers_configmap_name(group_name, index)
        table = s.table(cluster, NAMESPACE, name, names.KEY_PEERS)
        in_tables |= {instance["id"] for instance in table["instances"]}
    assert in_tables == found
