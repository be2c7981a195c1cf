"""NetworkPolicies of a service: who may connect to what, and that they come and go by the field."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.unit.controllers.test_ownership_and_counts import make

from pdserve.api import PDService
from pdserve.controllers.shared.caches import PDSERVICES
from pdserve.desired.network_policy import network_policies
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.kube.resource import NETWORK_POLICIES, PODS

OWNER = {"apiVersion": "pdserve.io/v1alpha1", "kind": "PDService", "name": "shop", "uid": "u"}
Rules = dict[int, list[dict[str, Any]] | None]


def rules(engine: str = "Reference", **field: Any) -> tuple[Rules, Rules]:
    """Port -> peers (None: any address), of the gateways and of the instances."""
    document = service()
    document["spec"]["engine"]["type"] = engine
    document["spec"]["networkPolicy"] = field
    policies = network_policies(PDService.parse(document), OWNER, "pdserve-system")
    gateways, instances = (
        {r["ports"][0]["port"]: r.get("from") for r in p["spec"]["ingress"]} for p in policies
    )
    return gateways, instances


PROMETHEUS = {
    "namespaceSelector": {},
    "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}},
}


SIBLINGS = {
    "podSelector": {
        "matchLabels": {"app.kubernetes.io/component": "instance", "pdserve.io/service": "shop"}
    }
}


GATEWAYS = {
    "podSelector": {
        "matchLabels": {"app.kubernetes.io/component": "gateway", "pdserve.io/service": "shop"}
    }
}


def test_none_without_the_field() -> None:
    assert network_policies(PDService.parse(service()), OWNER, "pdserve-system") == ()


def test_instances_are_reached_by_gateways_operator_and_prometheus_and_their_own_kind() -> None:
    gateways, instances = rules()
    assert gateways == {8000: None, 9090: [PROMETHEUS, GATEWAYS]}, "any client may call"
    http = instances[8000]
    assert http is not None
    assert http[0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "gateway"
    assert "namespaceSelector" not in http[0]
    assert http[1] == {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "pdserve-system"}},
        "podSelector": {
            "matchLabels": {
                "app.kubernetes.io/name": "pdserve",
                "app.kubernetes.io/component": "operator",
            }
        },
    }
    assert http[2:] == [PROMETHEUS]
    assert instances[5600] == [SIBLINGS]


def test_proxies_before_engines_reach_each_other() -> None:
    """They verify links and report pulls over HTTP."""
    for engine, reach in (("vLLM", True), ("Reference", False), ("Nothing", False)):
        _, instances = rules(engine)
        assert (SIBLINGS in (instances[8000] or [])) is reach
        assert instances[5600] == [SIBLINGS]


def test_clients_and_scrapers_are_named() -> None:
    gateways, instances = rules(
        clients=[{"cidr": "10.0.0.0/8"}, {"namespaceLabels": {"team": "a"}}],
        metrics=[{"namespaceLabels": {"m": "1"}, "podLabels": {"p": "1"}}],
    )
    scraper = {
        "namespaceSelector": {"matchLabels": {"m": "1"}},
        "podSelector": {"matchLabels": {"p": "1"}},
    }
    assert gateways[8000] == [
        {"ipBlock": {"cidr": "10.0.0.0/8"}},
        {"namespaceSelector": {"matchLabels": {"team": "a"}}},
        scraper,
    ]
    assert gateways[9090] == [scraper, GATEWAYS]
    assert (instances[8000] or [])[-1] == scraper


@virtual_time
async def test_they_are_made_changed_put_right_and_deleted() -> None:
    world = make()
    world.create(PDSERVICES, service(devices=2))

    def ingress(name: str) -> Any:
        found = world.get(NETWORK_POLICIES, name)
        return None if found is None else found["spec"]["ingress"]

    def want(policy: Any) -> None:
        world.patch(PDSERVICES, NS, "shop", {"spec": {"networkPolicy": policy}})

    async with world.running(), world.operator():
        await world.until(world.service_ready)
        assert ingress("shop-gateway") is None
        uids = _uids(world)
        want({"clients": [{"podLabels": {"app": "web"}}]})
        await world.until(lambda: ingress("shop-gateway") is not None, 30)
        await world.until(lambda: ingress("shop-instances") is not None, 30)
        limited = ingress("shop-gateway")
        assert limited[0]["from"][0] == {"podSelector": {"matchLabels": {"app": "web"}}}
        # A user opens it.
        world.patch(NETWORK_POLICIES, NS, "shop-gateway", {"spec": {"ingress": [{}]}})
        await world.until(lambda: ingress("shop-gateway") == limited, 30)
        want({"clients": []})
        await world.until(lambda: "from" not in ingress("shop-gateway")[0], 30)
        want(None)
        await world.until(lambda: ingress("shop-gateway") is None, 30)
        await world.until(lambda: ingress("shop-instances") is None, 30)
        await asyncio.sleep(30)
        assert _uids(world) == uids, "no instance was touched"


def _uids(world: World) -> set[str]:
    return {p["metadata"]["uid"] for p in world.seen(PODS)}
