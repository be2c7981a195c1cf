"""Which objects to reconcile when something changed: change -> queue keys.

Level-triggered: a key says which object to read, never what happened. A missing key would delay
work until the next resync, so where a rule is not sure it gives the key; the queue merges equal
keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from pdserve.controllers.shared.caches import (
    BY_DOMAIN,
    BY_NODE,
    BY_SERVICE,
    BY_STATE,
    UNBOUND,
    Caches,
    service_of_group,
)
from pdserve.controllers.shared.domain_overlap import overlap_in_status
from pdserve.controllers.shared.unsettled import Unsettled
from pdserve.kube.cache import Cache
from pdserve.kube.held import ChangeType, K
from pdserve.kube.resource import Object, ObjectKey
from pdserve.kube.workqueue import QueueKey, WorkQueue
from pdserve.topology import NodeView, PodView
from pdserve.topology.requests import is_extended
from pdserve.wire import names

SERVICE: Final = "PDService"
GROUP: Final = "ScenarioGroup"
DOMAIN: Final = "RoCEDomain"
DOMAIN_DELAY: Final = 0.5
"""Seconds over which changes of a RoCEDomain's nodes and devices are gathered: its status is a
summary, and one rollout changes hundreds of pods."""
SERVICE_DELAY: Final = 0.25
"""Seconds over which what only a PDService's status tells is gathered: pods of its instances, and
the status of its ScenarioGroups."""


def service_key(namespace: str, name: str) -> QueueKey:
    """Key of a PDService."""
    return QueueKey(SERVICE, namespace, name)


def group_key(key: ObjectKey) -> QueueKey:
    """Key of a ScenarioGroup."""
    return QueueKey(GROUP, key.namespace, key.name)


class Triggers:
    """Connects caches to the queue. Make one per set of caches."""

    def __init__(self, caches: Caches, queue: WorkQueue, unsettled: Unsettled) -> None:
        self._caches = caches
        self._queue = queue
        self._unsettled = unsettled
        caches.services.on_change(self._service)
        caches.groups.on_change(self._group)
        caches.domains.on_change(self._domain)
        caches.pods.on_change(self._pod)
        caches.nodes.on_change(self._node)
        for cache in (
            caches.config_maps,
            caches.revisions,
            caches.deployments,
            caches.gateway_services,
            caches.service_accounts,
            caches.roles,
            caches.role_bindings,
            caches.disruption_budgets,
            caches.network_policies,
        ):
            cache.on_change(self._owned)

    def everything(self) -> Iterator[QueueKey]:
        """Keys of all our objects, for resync and for taking over leadership."""
        kinds: tuple[tuple[str, Cache], ...] = (
            (DOMAIN, self._caches.domains),
            (SERVICE, self._caches.services),
            (GROUP, self._caches.groups),
        )
        for kind, cache in kinds:
            for obj in cache.list():
                meta = obj["metadata"]
                yield QueueKey(kind, meta.get("namespace") or "", meta["name"])

    def _service(self, _event: ChangeType, old: Object | None, new: Object | None) -> None:
        meta = _any(old, new)["metadata"]
        self._queue.add(service_key(meta["namespace"], meta["name"]))

    def _group(self, _event: ChangeType, old: Object | None, new: Object | None) -> None:
        obj = _any(old, new)
        meta = obj["metadata"]
        self._queue.add(QueueKey(GROUP, meta["namespace"], meta["name"]))
        told = old is not None and new is not None and _asked(old) == _asked(new)
        for service in service_of_group(obj):
            self._queue.add_after(QueueKey(SERVICE, *service), SERVICE_DELAY if told else 0.0)

    def _domain(self, _event: ChangeType, old: Object | None, new: Object | None) -> None:
        name = _any(old, new)["metadata"]["name"]
        self._queue.add(QueueKey(DOMAIN, "", name))
        if old is not None and new is not None and old.get("spec") == new.get("spec"):
            if overlap_in_status(old) != overlap_in_status(new):
                for group in self._caches.groups.by_index(BY_DOMAIN, name):
                    self._add(GROUP, group)
            return
        self._domains_later()  # they may share nodes with this one
        for group in self._caches.groups.by_index(BY_DOMAIN, name):
            self._add(GROUP, group)
        for service in self._caches.services.by_index(BY_DOMAIN, name):
            self._add(SERVICE, service)

    def _node(self, _event: ChangeType, old: NodeView | None, new: NodeView | None) -> None:
        """Whom it concerns looks: who has pods there, and who is not settled."""
        self._domains_later()
        name = _any(old, new).name
        unbound = self._caches.pods.by_index(BY_STATE, UNBOUND)
        for pod in (
            *self._caches.pods.by_index(BY_NODE, name),
            *(p for p in unbound if p.pinned == name),
        ):
            self._group_of(pod)
        for key in self._unsettled.groups:
            self._queue.add(group_key(key))

    def _pod(self, _event: ChangeType, old: PodView | None, new: PodView | None) -> None:
        pod = _any(old, new)
        if pod.ours:
            # Instances and gateways alike: a PDService reports on both. Where routes change, the
            # reconciliation of the ScenarioGroup wakes it at once.
            if names.LABEL_SERVICE in pod.labels:
                key = service_key(pod.namespace, pod.labels[names.LABEL_SERVICE])
                of_group = pod.owner is not None and pod.owner.kind == GROUP
                self._queue.add_after(key, SERVICE_DELAY if of_group else 0.0)
                if not of_group and (old is None or new is None):
                    # What instances ask of a request depends on which gateways there are.
                    self._groups_of(key.namespace, key.name)
            self._group_of(pod)
        before, after = _taken(old), _taken(new)
        if before == after:
            return
        if any(is_extended(r) for r in (*before, *after)):
            self._domains_later()
        if before and not after:
            self._waiting_groups()

    def _owned(self, _event: ChangeType, old: Object | None, new: Object | None) -> None:
        obj = _any(old, new)
        meta, data = obj["metadata"], obj.get("data") or {}
        for ref in meta.get("ownerReferences") or ():
            if ref.get("controller") and ref.get("kind") in (GROUP, SERVICE):
                self._queue.add(QueueKey(ref["kind"], meta["namespace"], ref["name"]))
            if ref.get("controller") and ref.get("kind") == SERVICE and names.KEY_ROUTES in data:
                # A drain waits until the route table has let go of its instance.
                self._groups_of(meta["namespace"], ref["name"])

    def _groups_of(self, namespace: str, service: str) -> None:
        for group in self._caches.groups.by_index(BY_SERVICE, (namespace, service)):
            self._add(GROUP, group)

    def _group_of(self, pod: PodView) -> None:
        if pod.owner is not None and pod.owner.kind == GROUP:
            self._queue.add(QueueKey(GROUP, pod.namespace, pod.owner.name))

    def _domains_later(self) -> None:
        for domain in self._caches.domains.list():
            self._queue.add_after(QueueKey(DOMAIN, "", domain["metadata"]["name"]), DOMAIN_DELAY)

    def _waiting_groups(self) -> None:
        """Something came free: those who could not be placed look again."""
        for key in self._unsettled.groups:
            group = self._caches.groups.get(key.name, key.namespace)
            if group is not None and not _placed(group):
                self._add(GROUP, group)

    def _add(self, kind: str, obj: Object) -> None:
        self._queue.add(QueueKey(kind, obj["metadata"]["namespace"], obj["metadata"]["name"]))


def _asked(group: Object) -> tuple[object, ...]:
    """All of a ScenarioGroup but what reconcilers report of it."""
    meta = group["metadata"]
    decisions = (group.get("status") or {}).get("decisions")
    deleted, labels = meta.get("deletionTimestamp"), meta.get("labels")
    return group.get("spec"), decisions, deleted, labels, meta.get("ownerReferences")


def _placed(group: Object) -> bool:
    """Whether nothing says that the ScenarioGroup waits for a place."""
    for condition in (group.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "Placed":
            return bool(condition.get("status", "True") == "True")
    return True


def _taken(pod: PodView | None) -> Mapping[str, int]:
    return {} if pod is None else pod.takes


def _any(old: K | None, new: K | None) -> K:
    found = new if new is not None else old
    if found is None:
        raise ValueError("a change without an object")
    return found
