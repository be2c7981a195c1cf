"""The operator's caches: one per kind, what each keeps, and how its objects are found.

Everything a plan reads comes from here, our own kinds included (kopf does not deliver deletions
that it missed over a re-list). Pods of the whole cluster are watched, because any pod takes
something of its node. Of those with devices and of our own the fields below are kept; of every
other one, while it is bound, only where it is and what it takes.
Neighbours: `triggers` turns changes into queue keys.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from sys import intern
from typing import Final

from pdserve.api import API_VERSION, KINDS, ObjectMeta
from pdserve.desired.compare import controller_uid
from pdserve.exposition import Registry
from pdserve.frozen import Light
from pdserve.kube.cache import Cache
from pdserve.kube.client import KubeClient
from pdserve.kube.held import OnSkip
from pdserve.kube.prune import Prune, keep, without_managed_fields
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
from pdserve.topology.requests import is_extended, pod_requests, spec_taking
from pdserve.wire import names
from pdserve.wire.pin import pinned_node

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


_KEPT_OF_PODS = keep(
    f"metadata.annotations[{names.ANNOTATION_DRAIN}]",
    f"metadata.annotations[{names.ANNOTATION_REPLACES}]",
    f"metadata.annotations[{names.ANNOTATION_MEMBERS}]",
    f"metadata.annotations[{names.ANNOTATION_LEADER}]",
    f"metadata.annotations[{names.ANNOTATION_CONTROL}]",
    f"metadata.annotations[{names.ANNOTATION_CREDENTIALS}]",
    f"metadata.annotations[{names.ANNOTATION_NETWORK_STATUS}]",
    "metadata.deletionGracePeriodSeconds",
    "spec.nodeName",
    "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution",
    "spec.tolerations",
    "spec.hostNetwork",
    "spec.overhead",
    "spec.resources",
    *(
        f"spec.{kind}.{part}"
        for kind in ("containers", "initContainers")
        for part in ("name", "resources", "ports.hostPort", "ports.hostIP", "ports.protocol")
    ),
    "spec.initContainers.restartPolicy",
    "status.phase",
    "status.reason",
    "status.message",
    "status.podIP",
    "status.startTime",
    "status.conditions.type",
    "status.conditions.status",
    "status.conditions.reason",
    "status.conditions.message",
    "status.conditions.lastTransitionTime",
    "status.containerStatuses.name",
    "status.containerStatuses.containerID",
    "status.containerStatuses.ready",
    "status.containerStatuses.restartCount",
    "status.containerStatuses.started",
    "status.containerStatuses.state",
    "status.containerStatuses.lastState",
    "status.containerStatuses.allocatedResourcesStatus",
)


def _prune_pod(pod: Object) -> Object | None:
    meta, requests = pod["metadata"], pod_requests(pod)
    labels = meta.get("labels") or {}
    ours = labels.get(names.LABEL_MANAGED_BY) == names.FIELD_MANAGER
    if ours or any(map(is_extended, requests)):
        return _KEPT_OF_PODS(pod)
    node = pod.get("spec", {}).get("nodeName")
    if not node or not requests:
        return None
    # A pod of one container that takes the same. There are a hundred for each of ours.
    return Light(
        {
            "metadata": {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]},
            "spec": {"nodeName": intern(node), **spec_taking(requests)},
        }
    )


# Without heartbeats and images: a node's periodic update is then no change at all.
_PRUNE_NODE = keep(
    f"metadata.annotations[{names.ANNOTATION_ROCE_DEVICES}]",
    f"metadata.annotations[{names.ANNOTATION_UNHEALTHY_DEVICES}]",
    "spec.unschedulable",
    "spec.taints",
    "status.capacity",
    "status.allocatable",
    "status.conditions.type",
    "status.conditions.status",
    "status.conditions.reason",
    "status.conditions.lastTransitionTime",
)


@dataclass(frozen=True)
class Caches:
    """All caches of the operator."""

    services: Cache
    groups: Cache
    domains: Cache
    pods: Cache
    nodes: Cache
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

    def __iter__(self) -> Iterator[Cache]:
        return iter(self._all.values())

    @cached_property
    def _all(self) -> Mapping[Resource, Cache]:
        found = (getattr(self, f.name) for f in fields(self))
        return {cache.resource: cache for cache in found if isinstance(cache, Cache)}

    @property
    def changes(self) -> int:
        """Counts everything that was taken in: while it stays, so does all that caches show."""
        return sum(cache.changes for cache in self._all.values())

    @property
    def synced(self) -> bool:
        """True once every cache was listed."""
        return all(cache.synced.is_set() for cache in self)

    async def wait_synced(self) -> None:
        """Return once every cache was listed."""
        for cache in self:
            await cache.synced.wait()

    def of(self, resource: Resource) -> Cache:
        """The cache of a kind; KeyError for a kind that is not cached."""
        if resource not in self._all:
            raise KeyError(resource.plural)
        return self._all[resource]


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

    def whole_cluster(resource: Resource, prune: Prune = without_managed_fields) -> Cache:
        return Cache(client, resource, prune=prune, registry=registry, on_skip=skipped, rng=rng)

    caches = Caches(
        services=ours(PDSERVICES, ""),
        groups=ours(SCENARIO_GROUPS, ""),
        domains=whole_cluster(ROCE_DOMAINS),
        pods=whole_cluster(PODS, _prune_pod),
        nodes=whole_cluster(NODES, _PRUNE_NODE),
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
    caches.pods.add_index(_BY_OWNER, _owner)
    caches.pods.add_index(BY_NODE, _node)
    caches.pods.add_index(BY_STATE, _unbound)
    caches.pods.add_index(BY_SERVICE, _gateway_service)
    return caches


def owned_by(cache: Cache, owner: ObjectMeta) -> tuple[Object, ...]:
    """Objects of the owner's namespace that name it as their controller, ordered by name.

    An owner reference holds a uid but no namespace, and any user may write one: an object of
    another namespace that names this owner is a forgery and is left out.
    """
    return controlled_by(cache, owner.namespace, owner.uid)


def controlled_by(cache: Cache, namespace: str, uid: str) -> tuple[Object, ...]:
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


def _node(pod: Object) -> Iterable[str]:
    node = pod.get("spec", {}).get("nodeName")
    return (node,) if node and pod["metadata"].get("ownerReferences") else ()


def _unbound(pod: Object) -> Iterable[str]:
    bound = pod.get("spec", {}).get("nodeName")
    return () if bound or pinned_node(pod) is None else (UNBOUND,)


def _gateway_service(pod: Object) -> Iterable[tuple[str, str]]:
    labels = pod["metadata"].get("labels") or {}
    if labels.get(names.LABEL_COMPONENT) != "gateway" or names.LABEL_SERVICE not in labels:
        return ()
    return ((pod["metadata"]["namespace"], labels[names.LABEL_SERVICE]),)
