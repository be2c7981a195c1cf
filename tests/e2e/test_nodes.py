"""A node goes down under traffic: its instance is substituted, alone, and the rest serves on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import pytest
from tests.support import installed as shop
from tests.support import scenarios as s
from tests.support.groups_at_rest import check_groups
from tests.support.installed import Installed, fixed, make_namespace, pdservice, role, scenario
from tests.support.real_cluster import KindCluster
from tests.support.service_traffic import ServiceTraffic

from pdserve.wire import names

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

NAMESPACE = SERVICE = "nodes"
GROUP = names.scenario_group_name(SERVICE, "chat")
HALF_A_NODE = 4
"""Devices: 1P2D of these do not fit one node."""


@pytest.fixture
def service(installed: Installed) -> Iterator[None]:
    """1P2D over two nodes, Ready."""
    cluster = installed.cluster
    make_namespace(cluster, NAMESPACE)
    half = role(slots=8, devices=HALF_A_NODE)
    document = pdservice(
        NAMESPACE, SERVICE, scenario("chat", fixed(1, 1, 2)), prefill=half, decode=half,
        gateway={"replicas": 2},
        recovery={"drainSeconds": 2, "nodeSuspectSeconds": 5},
    )  # fmt: skip
    cluster.apply(document, namespace=NAMESPACE)
    s.wait_service(cluster, NAMESPACE, SERVICE)
    yield
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def move_away(cluster: KindCluster, node: str) -> None:
    """Cordon a node and let its Deployments' pods start elsewhere: only instances stay."""
    cluster.kubectl("cordon", node)
    path = f"/api/v1/pods?fieldSelector=spec.nodeName={node}"
    for pod in (cluster.get(path) or {})["items"]:
        owners = {o["kind"] for o in pod["metadata"].get("ownerReferences", ())}
        if owners & {"ReplicaSet"}:
            cluster.kubectl(
                "delete", "pod", s.name_of(pod), "-n", pod["metadata"]["namespace"], "--wait=false"
            )

    def deployments_whole() -> bool:
        found = (cluster.get("/apis/apps/v1/deployments") or {})["items"]
        return all(
            d["status"].get("readyReplicas", 0) == d["spec"]["replicas"]
            and d["status"].get("observedGeneration") == d["metadata"]["generation"]
            for d in found
        )

    def moved() -> bool:
        pods = (cluster.get(path) or {})["items"]
        kinds = {o["kind"] for p in pods for o in p["metadata"].get("ownerReferences", ())}
        return "ReplicaSet" not in kinds and deployments_whole()

    s.until(f"only instances and daemons run on {node}", moved)


@pytest.mark.invariant(4)
def test_a_stopped_node_costs_one_substitution(
    kind: KindCluster, shop_service: Mapping[str, float], service: None,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    pods = s.pods(kind, NAMESPACE)
    crowd = Counter(pod["spec"]["nodeName"] for pod in pods)
    alone = [p for p in pods if crowd[p["spec"]["nodeName"]] == 1]
    assert alone, f"the planner put no instance alone: {crowd}"
    (lost,) = alone
    node = lost["spec"]["nodeName"]
    assert lost["metadata"]["labels"][names.LABEL_ROLE] == "decode"
    others = {s.name_of(p) for p in _instances_elsewhere(kind, node)}
    move_away(kind, node)
    before = s.identities(kind, NAMESPACE)
    url = f"http://{SERVICE}-gateway.{NAMESPACE}.svc"
    try:
        with ServiceTraffic(kind, url, rate=3) as traffic:
            traffic.wait_more(6)
            with s.stopwatch() as seconds:
                kind.stop(node)
                s.until(
                    "it is not routed any more",
                    lambda: s.name_of(lost) not in s.routed(kind, NAMESPACE, SERVICE),
                )
                record_property("out_of_routes_seconds", round(seconds(), 1))
                s.wait_substituted(kind, NAMESPACE, GROUP, before, {s.name_of(lost)})
                s.wait_service(kind, NAMESPACE, SERVICE)
                record_property("recovery_seconds", round(seconds(), 1))
            traffic.wait_more(6)
        record_property("requests", len(traffic.outcomes_at_end))
        record_property("streams_cut", len(traffic.failed))
        assert traffic.lost == [], "a decode was left to take them"
        assert others <= {s.name_of(p) for p in _instances_elsewhere(kind, node)}
    finally:
        kind.start(node)
        kind.kubectl("uncordon", node)
        kind.give_devices()  # what no device plugin backs is not sure to survive a kubelet
    s.until("the lost pod is gone", lambda: len(s.pods(kind, NAMESPACE)) == len(pods))
    check_groups(kind, NAMESPACE, GROUP)
    repairs = (s.group(kind, NAMESPACE, GROUP) or {})["status"]["repairs"]
    assert len(repairs) == 1, repairs


def _instances_elsewhere(cluster: KindCluster, node: str) -> list[s.Json]:
    """Instances of this service and the shared one that are not on a node."""
    found = [*s.pods(cluster, NAMESPACE), *s.pods(cluster, shop.NAMESPACE)]
    return [p for p in found if p["spec"]["nodeName"] != node]
