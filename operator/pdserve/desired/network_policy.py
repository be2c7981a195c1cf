"""The NetworkPolicies of a PDService that asks for them, as manifests. Pure.

    clients                   -> gateways    http
    metrics                   -> gateways    metrics, http
    gateways, operator, metrics -> instances   http
    instances of the service  -> instances   KV transfer; http where engine proxies link; any port
                                             where engines behind them have several pods

Traffic that leaves the pods is not limited: what it needs (DNS, the API server, weights) is the
site's. Probes come from the node itself, which policies do not stop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from pdserve.api import PDService
from pdserve.api.network import NetworkPeer
from pdserve.desired.objects import gateway_labels, gateway_name, owned_metadata
from pdserve.engines.pod_members import has_proxy
from pdserve.engines.pods import COMPONENT as INSTANCE
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.wire import names

COMPONENT: Final = "network-policy"
OPERATOR: Final = {"app.kubernetes.io/name": "pdserve", names.LABEL_COMPONENT: "operator"}
NAMESPACE_NAME: Final = "kubernetes.io/metadata.name"
PROMETHEUS: Final = NetworkPeer(pod_labels={"app.kubernetes.io/name": "prometheus"})
Json = JsonObject


def policy_names(service: str) -> tuple[str, str]:
    """Names of a service's NetworkPolicies: of its gateways, of its instances."""
    return gateway_name(service), f"{service}-instances"


def network_policies(
    service: PDService, owner: JsonMap, operator_namespace: str
) -> tuple[Json, ...]:
    """Both policies, or none where the service does not ask for them."""
    wanted = service.spec.network_policy
    if wanted is None:
        return ()
    name, namespace = service.metadata.name, service.metadata.namespace
    instances = {names.LABEL_COMPONENT: INSTANCE, names.LABEL_SERVICE: name}
    scrapers = [_peer(p) for p in wanted.metrics] or [
        {**_peer(PROMETHEUS), "namespaceSelector": {}}
    ]
    callers = [_peer(p) for p in wanted.clients]
    operator = {
        "namespaceSelector": {"matchLabels": {NAMESPACE_NAME: operator_namespace}},
        "podSelector": {"matchLabels": OPERATOR},
    }
    gateways = {"podSelector": {"matchLabels": gateway_labels(service)}}
    to_gateways = (
        # Scrapers too: gateways of an older operator have their metrics there.
        _allow([*callers, *scrapers] if callers else [], names.PORT_HTTP),
        # Gateways too: they share limits.
        _allow([*scrapers, gateways], names.PORT_METRICS),
    )
    siblings = [{"podSelector": {"matchLabels": instances}}]
    engine = service.spec.engine.type
    proxies = siblings if has_proxy(engine) else []
    roles = service.spec.prefill, service.spec.decode
    # Libraries of collective communication open ports that nothing else knows.
    whole = proxies and any(role.instance.nodes > 1 for role in roles)
    to_instances = (
        _allow([gateways, operator, *proxies, *scrapers], names.PORT_HTTP),
        {"from": siblings} if whole else _allow(siblings, names.PORT_TRANSFER),
    )
    of_gateways, of_instances = policy_names(name)

    def policy(name_: str, pods: Mapping[str, str], ingress: Iterable[Json]) -> Json:
        return {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": owned_metadata(name_, namespace, name, owner, COMPONENT),
            "spec": {
                "podSelector": {"matchLabels": dict(pods)},
                "policyTypes": ["Ingress"],
                "ingress": list(ingress),
            },
        }

    return (
        policy(of_gateways, gateway_labels(service), to_gateways),
        policy(of_instances, instances, to_instances),
    )


def _allow(peers: list[Json], port: int) -> Json:
    """A rule; no peers: any address."""
    ports = [{"protocol": "TCP", "port": port}]
    return {"from": peers, "ports": ports} if peers else {"ports": ports}


def _peer(peer: NetworkPeer) -> Json:
    if peer.cidr is not None:
        return {"ipBlock": {"cidr": peer.cidr}}
    found: Json = {}
    if peer.namespace_labels is not None:
        found["namespaceSelector"] = {"matchLabels": dict(peer.namespace_labels)}
    if peer.pod_labels is not None:
        found["podSelector"] = {"matchLabels": dict(peer.pod_labels)}
    return found
