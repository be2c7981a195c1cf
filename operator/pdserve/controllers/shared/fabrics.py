"""The fabrics of all RoCEDomains, kept and renewed from what caches report.

A fabric of ten thousand nodes takes a third of a second to build, and after one node event all
ScenarioGroups concerned ask for the same one. So it is built once per RoCEDomain; a change of a
node, or of what pods take of it, marks the node, and who asks next gets a fabric in which the
marked nodes are read again. Readers hold snapshots: a fabric never changes. `prepare` makes the
first one, and what is counted in it, in steps between which the event loop runs on. Neighbours:
`taken` counts here what is not in the cluster yet; `topology.fabric` renews.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

from pdserve.controllers.shared.caches import Caches
from pdserve.kube.held import ChangeType
from pdserve.placement import GroupRequest, prepare
from pdserve.topology import (
    Fabric,
    NodeView,
    PodView,
    Reservation,
    build_fabric,
    selects,
    summarise_some,
)
from pdserve.topology.spec import TreeSpec

STEP_NODES: Final = 500
"""Nodes that one step of `prepare` reads or counts, about (whole leaves): some milliseconds."""


@dataclass(slots=True)
class _Kept:
    spec: TreeSpec
    fabric: Fabric
    unread: list[str]
    """Nodes that are in no fabric yet, the first by name last."""
    changed: set[str] = field(default_factory=set)
    """Nodes that `fabric` does not show as they are."""


class Fabrics:
    """See the module. Make one per set of caches, before they run; one event loop."""

    def __init__(self, caches: Caches) -> None:
        self._caches = caches
        self._views: dict[str, NodeView] = {}
        self._used: dict[str, dict[str, int]] = {}
        self._reserved: dict[tuple[str, str], int] = {}
        self._kept: dict[str, _Kept] = {}
        caches.nodes.on_change(self._node)
        caches.pods.on_change(self._pod)

    def of(self, spec: TreeSpec) -> Fabric:
        """The RoCEDomain's fabric, with everything counted that pods take or that is reserved.

        Of any owner.
        """
        kept = self._of(spec)
        if kept.changed or kept.unread:
            self._read(kept, {*kept.changed, *kept.unread})
            kept.changed.clear()
            kept.unread.clear()
        return kept.fabric

    async def prepare(self, spec: TreeSpec, requests: Iterable[GroupRequest] = ()) -> None:
        """Let `of` find little to do: read the nodes, and count room for the shapes of `requests`.

        In steps; everything else of the event loop runs between two of them. Ends early where
        another spec of the RoCEDomain came into force meanwhile.
        """
        kept = self._of(spec)
        while kept.unread:
            first = [kept.unread.pop() for _ in range(min(STEP_NODES, len(kept.unread)))]
            self._read(kept, set(first))
            kept.changed.difference_update(first)
            await asyncio.sleep(0)
        while len(kept.changed) > STEP_NODES and self._in_force(kept):
            some = set(islice(sorted(kept.changed), STEP_NODES))
            self._read(kept, some)
            kept.changed -= some
            await asyncio.sleep(0)
        for request in requests:
            while self._in_force(kept):
                fabric = self.of(spec)
                if prepare(fabric, request, _step_leaves(fabric)):
                    break
                await asyncio.sleep(0)

    async def prepare_summary(self, spec: TreeSpec) -> None:
        """Let `topology.summarise` find little to do; in steps as `prepare`."""
        await self.prepare(spec)
        kept = self._of(spec)
        while self._in_force(kept):
            fabric = self.of(spec)
            if summarise_some(fabric, _step_leaves(fabric)):
                break
            await asyncio.sleep(0)

    def take(self, before: Iterable[Reservation], now: Iterable[Reservation]) -> None:
        """Reserve `now` in the place of `before`."""
        for sign, reservations in ((-1, before), (1, now)):
            for r in reservations:
                self._mark(r.node)
                self._reserve(r.node, {r.resource: r.devices}, sign)

    def _of(self, spec: TreeSpec) -> _Kept:
        """The newest fabric, whatever is to be read for it, of an older spec never."""
        kept = self._kept.get(spec.name)
        if kept is None or kept.spec != spec:
            names = sorted(n.name for n in self._caches.nodes.list() if selects(spec, n))
            kept = self._kept[spec.name] = _Kept(spec, build_fabric(spec, ()), names[::-1])
        return kept

    def _in_force(self, kept: _Kept) -> bool:
        return self._kept.get(kept.spec.name) is kept

    def _read(self, kept: _Kept, names: set[str]) -> None:
        known = kept.fabric.nodes
        seen = {name: self._selected(kept.spec, name) for name in sorted(names)}
        changed = {n: view for n, view in seen.items() if view is not None or n in known}
        if changed:
            kept.fabric = kept.fabric.renewed(changed, dict(self._reserved))

    def _selected(self, spec: TreeSpec, name: str) -> NodeView | None:
        node = self._caches.nodes.get(name)
        return self._view(node) if node is not None and selects(spec, node) else None

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
        for node in (old, new):
            if node is not None:
                self._mark(node.name)

    def _pod(self, _event: ChangeType, old: PodView | None, new: PodView | None) -> None:
        before, after = _taken(old), _taken(new)
        if before == after:
            return
        for sign, taken in ((-1, before), (1, after)):
            if taken is None:
                continue
            self._mark(taken.node)
            if taken.bound:
                self._count(taken.node, taken.requests, sign)
            else:
                self._reserve(taken.node, taken.requests, sign)

    def _mark(self, node: str) -> None:
        self._views.pop(node, None)
        for kept in self._kept.values():
            kept.changed.add(node)

    def _reserve(self, node: str, requests: Mapping[str, int], sign: int) -> None:
        for resource, amount in requests.items():
            total = self._reserved.get((node, resource), 0) + sign * amount
            if total:
                self._reserved[node, resource] = total
            else:
                self._reserved.pop((node, resource), None)

    def _count(self, node: str, requests: Mapping[str, int], sign: int) -> None:
        used = self._used.setdefault(node, {})
        for resource, amount in requests.items():
            total = used.get(resource, 0) + sign * amount
            if total:
                used[resource] = total
            else:
                used.pop(resource, None)
        if not used:
            del self._used[node]


def _step_leaves(fabric: Fabric) -> int:
    """Leaves with about `STEP_NODES` nodes, at least one."""
    nodes = max(1, len(fabric.tree.paths))
    return max(1, STEP_NODES * len(fabric.leaves) // nodes)


@dataclass(frozen=True, slots=True)
class _Taken:
    """What a pod takes of a node."""

    node: str
    bound: bool
    requests: Mapping[str, int]


def _taken(pod: PodView | None) -> _Taken | None:
    """All that a tree knows of a pod; None for nothing."""
    if pod is None or not pod.place or not pod.takes:
        return None
    return _Taken(pod.place, bool(pod.node), pod.takes)
