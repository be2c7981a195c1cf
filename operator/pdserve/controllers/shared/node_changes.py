"""When each node last changed so that it may take an instance that it refused before.

The scheduler has many reasons to refuse (pod anti-affinity, volumes, limits that admission adds),
so every change that may remove one counts: a pod left the node, or the node's own description
changed (amounts, labels, taints, cordon). Kept in memory only: after a restart the planner's
back-off runs to its end. Neighbours: `groups.repairs` decides what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pdserve.controllers.shared.caches import Caches
from pdserve.kube.held import ChangeType
from pdserve.topology import NodeView, PodView


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

    def _node(self, event: ChangeType, old: NodeView | None, new: NodeView | None) -> None:
        if new is None:
            if old is not None:
                self._bettered.pop(old.name, None)
        elif self._caches.nodes.synced.is_set() and (old is None or _stated(old) != _stated(new)):
            self._bettered[new.name] = self._now()

    def _pod(self, event: ChangeType, old: PodView | None, new: PodView | None) -> None:
        if old is None or not old.node or not old.takes:
            return
        if (new is None or not new.takes) and self._caches.nodes.get(old.node) is not None:
            self._bettered[old.node] = self._now()


def _stated(node: NodeView) -> tuple[object, ...]:
    taints = (node.taints, node.soft_taints)
    return node.labels, taints, node.unschedulable, node.allocatable, node.offers
