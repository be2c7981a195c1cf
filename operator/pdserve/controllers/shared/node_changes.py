"""When each node last changed: so that it may take what it refused, or so that it says it ends.

The scheduler has many reasons to refuse (pod anti-affinity, volumes, limits that admission adds),
so every change that may remove one counts: a pod left the node, or the node's own description
changed (amounts, labels, taints, cordon). Kept in memory only: after a restart the planner's
back-off runs to its end, and a notice without a time counts from then on. Neighbours:
`groups.repairs` and `groups.ending` decide what follows.
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
        self._signals: dict[tuple[str, str], float] = {}
        caches.nodes.on_change(self._node)
        caches.pods.on_change(self._pod)

    @property
    def bettered(self) -> Mapping[str, float]:
        """Seconds since the epoch by node; without those at which nothing was seen."""
        return self._bettered

    @property
    def signals_seen(self) -> Mapping[tuple[str, str], float]:
        """When a node's taint or condition was first seen, by node and name; "": its annotation."""
        return self._signals

    def _node(self, event: ChangeType, old: NodeView | None, new: NodeView | None) -> None:
        before, after = _signals(old), _signals(new)
        for key in before - after:
            self._signals.pop(key, None)
        for key in after:
            self._signals.setdefault(key, self._now())
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


def _signals(node: NodeView | None) -> set[tuple[str, str]]:
    if node is None:
        return set()
    found = {(node.name, signal.name) for signal in node.signals}
    return found if node.ends_at is None else {*found, (node.name, "")}


def _stated(node: NodeView) -> tuple[object, ...]:
    taints = (node.taints, node.soft_taints)
    told = (node.signals, node.ends_at)
    return node.labels, taints, told, node.unschedulable, node.allocatable, node.offers
