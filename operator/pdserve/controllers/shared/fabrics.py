"""The fabric trees of all RoCEDomains, kept while nothing in them changes.

To build a tree of a thousand nodes takes tens of milliseconds, and after one node event hundreds
of ScenarioGroups ask for the same one. So a node is read again only when it, or what pods use of
it, changed. When a node itself changed, the tree is built again. When only pods came or went,
which is frequent, only their nodes are replaced in the tree, and placement's counts of the others
stay. Neighbours: `promises` and others add to the tree what is not in the cluster yet; the caches
report what changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from pdserve.controllers.shared.caches import BY_STATE, UNBOUND, Caches
from pdserve.kube.held import ChangeType
from pdserve.topology import (
    Fabric,
    NodeView,
    PodView,
    Reservation,
    build_fabric,
    reservation_of,
)
from pdserve.topology.spec import TreeSpec

MOST_CHANGED: Final = 64
"""Nodes put anew into a tree before it is built again."""


@dataclass(slots=True)
class _Built:
    spec: TreeSpec
    revision: int
    base: Fabric
    """As it was built."""
    fabric: Fabric
    """As it is now: `base` with the nodes that changed since."""
    stale: set[str] = field(default_factory=set)
    """Nodes that `fabric` does not show as they are."""
    changed: set[str] = field(default_factory=set)
    """Nodes in which `fabric` differs from `base`."""


class Fabrics:
    """See the module. Make one per set of caches, before they run; one event loop."""

    def __init__(self, caches: Caches) -> None:
        self._caches = caches
        self._views: dict[str, NodeView] = {}
        self._used: dict[str, dict[str, int]] = {}
        self._built: dict[str, _Built] = {}
        self._revision = 0
        caches.nodes.on_change(self._node)
        caches.pods.on_change(self._pod)

    def of(self, spec: TreeSpec, promised: Iterable[Reservation] = ()) -> Fabric:
        """The RoCEDomain's tree with everything counted that pods take, have reserved or were
        promised.

        Of any owner. `promised`: what pods that are being created will take.
        """
        built = self._built.get(spec.name)
        if built is None or built.revision != self._revision or built.spec != spec:
            built = self._build(spec)
        elif built.stale:
            built.changed |= built.stale
            built.stale.clear()
            if len(built.changed) > MOST_CHANGED:
                built = self._build(spec)
            else:
                self._renew(built)
        self._built[spec.name] = built
        extra = tuple(promised)
        return built.fabric.reserve(extra) if extra else built.fabric

    def _build(self, spec: TreeSpec) -> _Built:
        wanted = spec.selector.items()
        nodes = [
            self._view(node)
            for node in self._caches.nodes.list()
            if all(node.labels.get(k) == v for k, v in wanted)
        ]
        fabric = build_fabric(spec, nodes, reservations(self._caches))
        return _Built(spec, self._revision, fabric, fabric)

    def _renew(self, built: _Built) -> None:
        """Read the nodes whose pods changed, and put them into the tree."""
        names = sorted(built.changed)
        nodes = (node for name in names if (node := self._caches.nodes.get(name)) is not None)
        views = map(self._view, nodes)
        built.fabric = built.base.renewed(views, reservations(self._caches))

    def _view(self, node: NodeView) -> NodeView:
        """The node with what its pods take."""
        view = self._views.get(node.name)
        if view is None:
            used = self._used.get(node.name)
            view = replace(node, used=dict(used)) if used else node
            self._views[node.name] = view
        return view

    # --- what changed ----------------------------------------------------------------------

    def _node(self, _event: ChangeType, old: NodeView | None, new: NodeView | None) -> None:
        self._revision += 1
        for node in (old, new):
            if node is not None:
                self._views.pop(node.name, None)

    def _pod(self, _event: ChangeType, old: PodView | None, new: PodView | None) -> None:
        before, after = _taken(old), _taken(new)
        if before == after:
            return
        for sign, taken in ((-1, before), (1, after)):
            if taken is None:
                continue
            if taken.bound:
                self._count(taken.node, taken.requests, sign)
            for built in self._built.values():
                if taken.node in built.base.nodes:
                    built.stale.add(taken.node)

    def _count(self, node: str, requests: Mapping[str, int], sign: int) -> None:
        self._views.pop(node, None)
        used = self._used.setdefault(node, {})
        for resource, amount in requests.items():
            total = used.get(resource, 0) + sign * amount
            if total:
                used[resource] = total
            else:
                used.pop(resource, None)
        if not used:
            del self._used[node]


@dataclass(frozen=True, slots=True)
class _Taken:
    """What a pod takes of a node."""

    node: str
    bound: bool
    requests: Mapping[str, int]


def reservations(caches: Caches) -> tuple[Reservation, ...]:
    """What pinned pods that are not bound yet will take."""
    pods = caches.pods.by_index(BY_STATE, UNBOUND)
    return tuple(r for pod in pods for r in reservation_of(pod))


def _taken(pod: PodView | None) -> _Taken | None:
    """All that a tree knows of a pod; None for nothing."""
    if pod is None or not pod.place or not pod.takes:
        return None
    return _Taken(pod.place, bool(pod.node), pod.takes)
