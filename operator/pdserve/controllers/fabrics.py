"""The fabric trees of all RoCEDomains, kept while nothing in them changes.

A tree of a thousand nodes takes tens of milliseconds to build, and after one node event hundreds
of ScenarioGroups ask for the same one. Here a node is read again only when it, or what pods hold
on it, changed; a tree is built again only when one of its nodes was. Neighbours: `promises` and
others lay on top of the tree what they know; the caches say what changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pdserve.controllers.caches import BY_NODE, BY_STATE, UNBOUND, Caches
from pdserve.controllers.skipped import read_each
from pdserve.kube.cache import ChangeType
from pdserve.kube.resource import Object
from pdserve.topology import (
    Fabric,
    NodeView,
    Reservation,
    build_fabric,
    node_view,
    pod_devices,
    reservation_of,
)
from pdserve.topology.spec import TreeSpec


@dataclass(slots=True)
class _Built:
    spec: TreeSpec
    revision: int
    fabric: Fabric


class Fabrics:
    """See the module. Make one per set of caches; one event loop."""

    def __init__(self, caches: Caches) -> None:
        self._caches = caches
        self._views: dict[str, NodeView] = {}
        self._built: dict[str, _Built] = {}
        self._revision = 0
        caches.nodes.on_change(self._node)
        caches.pods.on_change(self._pod)

    def of(self, spec: TreeSpec, promised: Iterable[Reservation] = ()) -> Fabric:
        """The RoCEDomain's tree with every bound, reserved or promised device counted.

        Whoever holds it. `promised`: what pods that are being created will hold.
        """
        built = self._built.get(spec.name)
        if built is None or built.revision != self._revision or built.spec != spec:
            built = _Built(spec, self._revision, self._build(spec))
            self._built[spec.name] = built
        extra = tuple(promised)
        return built.fabric.reserve(extra) if extra else built.fabric

    def _build(self, spec: TreeSpec) -> Fabric:
        def chosen(node: Object) -> NodeView | None:
            labels = node["metadata"].get("labels") or {}
            wanted = all(labels.get(k) == v for k, v in spec.selector.items())
            return self._view(node) if wanted else None

        views = read_each(self._caches.nodes.list(), chosen, self._caches.skipped, "fabric")
        nodes = [v for v in views if v is not None]
        return build_fabric(spec, nodes, reservations(self._caches))

    def _view(self, node: Object) -> NodeView:
        name = node["metadata"]["name"]
        view = self._views.get(name)
        if view is None:
            view = node_view(node, self._caches.pods.by_index(BY_NODE, name))
            self._views[name] = view
        return view

    # --- what changed ----------------------------------------------------------------------

    def _node(self, _event: ChangeType, old: Object | None, new: Object | None) -> None:
        self._revision += 1
        for node in (old, new):
            if node is not None:
                self._views.pop(node["metadata"]["name"], None)

    def _pod(self, _event: ChangeType, old: Object | None, new: Object | None) -> None:
        before, after = _held(old), _held(new)
        if before == after:
            return
        self._revision += 1
        for held in (before, after):
            if held is not None:
                self._views.pop(held[0], None)


def reservations(caches: Caches) -> tuple[Reservation, ...]:
    """Devices promised to pinned pods that are not bound yet."""
    pods = caches.pods.by_index(BY_STATE, UNBOUND)
    found = read_each(pods, reservation_of, caches.skipped, "fabric")
    return tuple(r for of_pod in found for r in of_pod)


def _held(pod: Object | None) -> tuple[str, Any] | None:
    """What a pod takes from which node: all that a tree knows of it; None for nothing."""
    if pod is None:
        return None
    node = pod.get("spec", {}).get("nodeName")
    if node:
        return str(node), pod_devices(pod)
    found = reservation_of(pod)
    return (found[0].node, found) if found else None
