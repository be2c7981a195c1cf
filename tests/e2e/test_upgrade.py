"""`helm upgrade` under traffic: operators and gateways change, no instance does, nothing fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from tests.support import scenarios as s
from tests.support.installed import (
    IMAGE_TAG,
    NAMESPACE,
    OPERATOR_NAMESPACE,
    SERVICE,
    Installed,
)
from tests.support.real_cluster import KindCluster
from tests.support.service_traffic import ServiceTraffic

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

NEXT = f"{IMAGE_TAG}-next"


def tag_in_nodes(cluster: KindCluster) -> None:
    """The same images under the tag of the next release."""
    workers = "/api/v1/nodes?labelSelector=!node-role.kubernetes.io/control-plane"
    nodes = (cluster.get(workers) or {})["items"]
    for node in map(s.name_of, nodes):
        for name in ("operator", "gateway"):
            image = f"docker.io/pdserve/{name}"
            cluster.in_node(
                node, "ctr", "-n", "k8s.io", "images", "tag", "--force",
                f"{image}:{IMAGE_TAG}", f"{image}:{NEXT}",
            )  # fmt: skip


def images(pods: list[s.Json]) -> set[str]:
    """Tags that pods run."""
    return {p["spec"]["containers"][0]["image"].rpartition(":")[2] for p in pods}


@pytest.mark.invariant(2)
def test_a_new_release_rolls_operators_and_gateways_only(
    kind: KindCluster, installed: Installed, shop_service: Mapping[str, float],
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    s.wait_service(kind, NAMESPACE, SERVICE)
    tag_in_nodes(kind)
    instances = {s.name_of(p): p["metadata"]["uid"] for p in s.pods(kind, NAMESPACE)}

    def everything_rolled() -> bool:
        gateways = s.gateways(kind, NAMESPACE, SERVICE)
        return len(gateways) == 2 and images(gateways) == {NEXT}

    with ServiceTraffic(kind, f"http://{SERVICE}-gateway.{NAMESPACE}.svc") as traffic:
        traffic.wait_more(4)
        with s.stopwatch() as seconds:
            installed.upgrade(**{"images.tag": NEXT})
            record_property("helm_upgrade_seconds", round(seconds(), 1))
            s.until("gateways of the next release serve", everything_rolled)
            record_property("gateways_rolled_seconds", round(seconds(), 1))
        traffic.wait_more(12)
        # Gateways of the old release finish their streams.
        s.until(
            "old gateways are gone",
            lambda: len(s.gateways(kind, NAMESPACE, SERVICE, every=True)) == 2,
        )
        traffic.wait_more(4)
    record_property("requests", len(traffic.outcomes_at_end))
    assert traffic.failed == []
    assert images(installed.operators()) == {NEXT}
    assert s.name_of(installed.operator()) in {s.name_of(p) for p in installed.operators()}
    after = {s.name_of(p): p["metadata"]["uid"] for p in s.pods(kind, NAMESPACE)}
    assert after == instances
    restarts = [
        c["restartCount"]
        for p in installed.operators()
        for c in p["status"]["containerStatuses"]
        if p["metadata"]["namespace"] == OPERATOR_NAMESPACE
    ]
    assert restarts == [0, 0]
