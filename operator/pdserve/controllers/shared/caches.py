"""The operator's caches: one per kind, what each keeps, and how its objects are found.

Every plan reads from here, our own kinds included (kopf misses deletions that happen during a
re-list). Pods of the whole cluster are watched, because any pod uses resources of its node. Pods
and Nodes are kept as views (`topology.PodView`, `NodeView`), all else as JSON. An update that
changes no field of the view, such as a node's heartbeat, counts as no change. Neighbours:
`triggers` turns changes into queue keys.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Final

from pdserve.api import API_VERSION, KINDS, ObjectMeta
from pdserve.desired.compare import controller_uid
from pdserve.exposition import Registry
from pdserve.kube.cache import Cache, ViewCache
from pdserve.kube.client import KubeClient
from pdserve.kube.held import K, OnSkip
from pdserve.kube.resource import (
    CONFIGMAPS,
    CONTROLLER_REVISIONS,
    DEPLOYMENTS,
    NETWORK_POLICIES,
    NODES,
    POD_DISRUPTION_BUDGETS,
    PODS,
    ROLE_BINDINGS,
    ROLES,
    SERVICE_ACCOUNTS,
    SERVICES,
    Object,
    Resource,
)
from pdserve.topology import NodeView, PodView, kept_pod, node_view
from pdserve.wire import names

_GROUP, _VERSION = API_VERSION.split("/")
_PLURALS = {kind.info.name: kind.info.plural for kind in KINDS}

PDSERVICES: Final = Resource(_GROUP, _VERSION, _PLURALS["PDService"], "PDService")
SCENARIO_GROUPS: Final = Resource(_GROUP, _VERSION, _PLURALS["ScenarioGroup"], "ScenarioGroup")
ROCE_DOMAINS: Final = Resource(
    _GROUP, _VERSION, _PLURALS["RoCEDomain"], "RoCEDomain", namespaced=False
)

OURS: Final = f"{names.LABEL_MANAGED_BY}={names.FIELD_MANAGER}"
"""Selects what the operator makes beside pods and our kinds."""

_BY_OWNER: Final = "owner"
"""`(namespace, controller uid)`; read with `owned_by`."""
BY_NODE: Final = "node"
"""Node name of bound pods that something owns."""
BY_STATE: Final = "state"
"""`UNBOUND` pods: reservations."""
UNBOUND: Final = "unbound"
BY_SERVICE: Final = "service"
"""`(namespace, PDService name)` of ScenarioGroups, and of gateway pods."""
BY_DOMAIN: Final = "domain"
"""RoCEDomain name of ScenarioGroups and PDServices."""


AnyCache = Cache | ViewCache[PodView] | ViewCache[NodeView]


@dataclass(frozen=True)
class Caches:
    """All caches of the operator."""

    services: Cache
    groups: Cache
    domains: Cache
    pods: ViewCache[PodView]
    nodes: ViewCache[NodeView]
    config_maps: Cache
    revisions: Cache
    deployments: Cache
    gateway_services: Cache
    service_accounts: Cache
    roles: Cache
    role_bindings: Cache
    disruption_budgets: Cache
    network_policies: Cache
    skipped: OnSkip
    """Receives objects that cannot be read."""

    def __iter__(self) -> Iterator[AnyCache]:
        return iter(self._all)

    @cached_property
    def _all(self) -> tuple[AnyCache, ...]:
        found = (getattr(self, f.name) for f in fields(self))
        return tuple(cache for cache in found if isinstance(cache, ViewCache))

    @property
    def changes(self) -> int:
        """Counts everything that was taken in: while it stays, so does all that caches show."""
        return sum(cache.changes for cache in self._all)

    @property
    def synced(self) -> bool:
        """True once every cache was listed."""
        return all(cache.synced.is_set() for cache in self)

    async def wait_synced(self) -> None:
        """Return once every cache was listed."""
        for cache in self:
            await cache.synced.wait()

    def of(self, resource: Resource) -> Cache:
        """The cache of a kind that is kept as JSON.

        Raises:
            KeyError: the kind is not kept, or not as JSON.
        """
        return self._of[resource]

    @cached_property
    def _of(self) -> dict[Resource, Cache]:
        return {cache.resource: cache for cache in self._all if isinstance(cache, Cache)}


def make_caches(
    client: KubeClient,
    namespace: str | None,
    registry: Registry,
    skipped: OnSkip,
    rng: random.Random | None = None,
) -> Caches:
    """Caches with their indexes; nothing runs yet.

    Args:
        client: how to reach the API server.
        namespace: where our kinds are looked after; None for the whole cluster. Pods, Nodes and
            RoCEDomains are always the whole cluster's.
        registry: where the caches' metrics go.
        skipped: receives objects that cannot be read.
        rng: randomness of their waits.
    """

    def ours(resource: Resource, selector: str = OURS) -> Cache:
        return Cache(
            client, resource, namespace=namespace, label_selector=selector,
            registry=registry, on_skip=skipped, rng=rng,
        )  # fmt: skip

    caches = Caches(
        services=ours(PDSERVICES, ""),
        groups=ours(SCENARIO_GROUPS, ""),
        domains=Cache(client, ROCE_DOMAINS, registry=registry, on_skip=skipped, rng=rng),
        pods=ViewCache(client, PODS, kept_pod, registry=registry, on_skip=skipped, rng=rng),
        nodes=ViewCache(client, NODES, node_view, registry=registry, on_skip=skipped, rng=rng),
        config_maps=ours(CONFIGMAPS),
        revisions=ours(CONTROLLER_REVISIONS),
        deployments=ours(DEPLOYMENTS),
        gateway_services=ours(SERVICES),
        service_accounts=ours(SERVICE_ACCOUNTS),
        roles=ours(ROLES),
        role_bindings=ours(ROLE_BINDINGS),
        disruption_budgets=ours(POD_DISRUPTION_BUDGETS),
        network_policies=ours(NETWORK_POLICIES),
        skipped=skipped,
    )
    caches.groups.add_index(_BY_OWNER, _owner)
    caches.groups.add_index(BY_SERVICE, service_of_group)
    caches.groups.add_index(BY_DOMAIN, _domain)
    caches.services.add_index(BY_DOMAIN, _domain)
    caches.config_maps.add_index(_BY_OWNER, _owner)
    caches.revisions.add_index(_BY_OWNER, _owner)
    caches.disruption_budgets.add_index(_BY_OWNER, _owner)
    caches.pods.add_index(_BY_OWNER, _owner_of_pod)
    caches.pods.add_index(BY_NODE, _node)
    caches.pods.add_index(BY_STATE, _unbound)
    caches.pods.add_index(BY_SERVICE, _gateway_service)
    return caches


def owned_by(cache: ViewCache[K], owner: ObjectMeta) -> tuple[K, ...]:
    """Objects of the owner's namespace that name it as their controller, ordered by name.

    An owner reference holds a uid but no namespace, and any user may write one: an object of
    another namespace that names this owner is a forgery and is left out.
    """
    return controlled_by(cache, owner.namespace, owner.uid)


def controlled_by(cache: ViewCache[K], namespace: str, uid: str) -> tuple[K, ...]:
    """`owned_by` for an owner of which only namespace and uid are at hand."""
    return cache.by_index(_BY_OWNER, (namespace, uid))


def _owner(obj: Object) -> Iterable[tuple[str, str]]:
    uid = controller_uid(obj)
    return () if uid is None else ((obj["metadata"].get("namespace", ""), uid),)


def service_of_group(obj: Object) -> Iterable[tuple[str, str]]:
    """`(namespace, name)` of the PDService that a ScenarioGroup names, if it names one."""
    service = (obj.get("spec") or {}).get("service")
    return ((obj["metadata"]["namespace"], service),) if isinstance(service, str) else ()


def _domain(obj: Object) -> Iterable[str]:
    return (obj["spec"]["fabric"]["domainRef"]["name"],)


def _owner_of_pod(pod: PodView) -> Iterable[tuple[str, str]]:
    return () if pod.owner is None else ((pod.namespace, pod.owner.uid),)


def _node(pod: PodView) -> Iterable[str]:
    return (pod.node,) if pod.node and pod.owner is not None else ()


def _unbound(pod: PodView) -> Iterable[str]:
    return () if pod.node or pod.pinned is None else (UNBOUND,)


def _gateway_service(pod: PodView) -> Iterable[tuple[str, str]]:
    service = pod.labels.get(names.LABEL_SERVICE)
    if pod.labels.get(names.LABEL_COMPONENT) != "gateway" or service is None:
        return ()
    return ((pod.namespace, service),)
