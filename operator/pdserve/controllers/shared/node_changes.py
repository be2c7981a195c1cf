"""When each node last changed so that it may take an instance that it refused before.

The scheduler's reasons are many (pods that keep away from others, volumes, limits that admission
adds), so whatever may cure one counts: a pod there left, or what the node states of itself changed
(amounts, labels, taints, cordon). Kept in memory only: after a restart the planner's back-off runs
its course. Neighbours: `groups.repairs` decides what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pdserve.controllers.shared.caches import Caches
from pdserve.kube.held import ChangeType
from pdserve.kube.resource import Object
from pdserve.topology import pod_requests


class NodeChanges:
    """See the module. Make one per set of caches, before they run; one event loop."""

    def __init__(self, caches: Caches, now: Callable[[], float]) -> None:
        """`now`: seconds since the epoch, on the clock of `Observation.now`."""
        self._caches = caches
        self._now = now
        self._bettered: dict[str, float] = {}
        caches.nodes.on_change(self._node)
        caches.pods.on_change(self._pod)

    @property
    def bettered(self) -> Mapping[str, float]:
        """Seconds since the epoch by node; without those at which nothing was seen."""
        return self._bettered

    def _node(self, event: ChangeType, old: Object | None, new: Object | None) -> None:
        if new is None:
            self._bettered.pop((old or {})["metadata"]["name"], None)
        elif self._caches.nodes.synced.is_set() and (old is None or _stated(old) != _stated(new)):
            self._bettered[new["metadata"]["name"]] = self._now()

    def _pod(self, event: ChangeType, old: Object | None, new: Object | None) -> None:
        node = (old or {}).get("spec", {}).get("nodeName")
        if not node or old is None or not pod_requests(old):
            return
        if (new is None or not pod_requests(new)) and self._caches.nodes.get(node) is not None:
            self._bettered[node] = self._now()


def _stated(node: Object) -> tuple[object, ...]:
    spec, status = node.get("spec", {}), node.get("status", {})
    labels, taints = node["metadata"].get("labels"), spec.get("taints")
    return labels, taints, spec.get("unschedulable"), status.get("allocatable")
