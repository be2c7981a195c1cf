"""What is free where: a tree of nodes with what they have, use and have promised.

A fabric is immutable. `reserve` answers with a new view over the same tree, so several placements
of one plan see each other; `renewed` is the fabric after nodes or reservations changed in the
cluster. Neighbours: `tree` is its structure, `nodes` fills it, `placement` asks it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol, Self

from pdserve.topology.nodes import NodeView, Reservation, Toleration
from pdserve.topology.notices import NodeEnd, announced_end
from pdserve.topology.obstacle import Obstacle
from pdserve.topology.requests import port_conflicts
from pdserve.topology.spec import TreeSpec, fabric_spec
from pdserve.topology.tree import LabelProblem, Path, Tree, selects, tree_of

if TYPE_CHECKING:
    from pdserve.api import RoCEDomain

MAX_CHANGED = 1024
"""Nodes that may have changed since something was derived; each further renewal costs as many."""
MAX_KEPT = 128
"""What a fabric remembers, most of it for one pair of shapes each."""
Reserved = Mapping[tuple[str, str], int]
"""Amounts by node and resource."""


class Derived(Protocol):
    """What is derived from a fabric and kept in its `memo`."""

    def after(self, changed: frozenset[str]) -> Self | None:
        """The same for a fabric in which these nodes are others, moved, new or gone.

        None: it is to be derived anew.
        """


class Fabric:
    """Immutable tree of the nodes of one RoCEDomain. Build it with `build_fabric`.

    Attributes are read-only by agreement. `memo` caches what others derive from this very view
    (placement's leaf counters); it never changes an answer.
    """

    __slots__ = (
        "_paths", "_reserved", "changed", "leaves", "memo", "nodes", "parent", "parts", "spec",
        "tree",
    )  # fmt: skip

    def __init__(self, tree: Tree, nodes: Mapping[str, NodeView], reserved: Reserved) -> None:
        """`nodes`: all that the RoCEDomain selects, those left out of the tree included."""
        self.tree = tree
        self.spec = tree.spec
        self.leaves = tree.leaves
        self.parts = tree.parts
        self.nodes = nodes
        self._paths = tree.paths
        self._reserved = reserved
        self.memo: dict[Hashable, Derived] = {}
        self.parent: Fabric | None = None
        """The view that this one was made from by `reserve` or `release`."""
        self.changed: frozenset[str] = frozenset()
        """Nodes on which other amounts are free than in `parent`."""

    @property
    def excluded(self) -> Mapping[str, str]:
        """Selected nodes left out of the tree, with the reason."""
        return self.tree.excluded

    @property
    def problems(self) -> tuple[LabelProblem, ...]:
        """Flaws in node labels."""
        return self.tree.problems

    @property
    def version(self) -> str:
        """Changes with topology, not with load."""
        return self.tree.version

    def path(self, node: str) -> Path | None:
        """Full path of a node, or None when it is not in the tree."""
        return self._paths.get(node)

    def leaf(self, node: str) -> Path | None:
        """Path of the leaf a node hangs under, or None when it is not in the tree."""
        return self.tree.leaf(node)

    def place_of(self, node: str) -> Mapping[str, str]:
        """Level name -> value for a node; empty when it is not in the tree."""
        path = self._paths.get(node, ())
        return {level.name: value for level, value in zip(self.spec.levels, path, strict=False)}

    def free(self, node: str, resource: str) -> int:
        """Devices of `resource` on `node` that are neither used nor reserved."""
        if node not in self._paths:
            return 0
        return max(0, self.nodes[node].free(resource) - self._reserved.get((node, resource), 0))

    def left(self, node: str, resource: str) -> int | None:
        """The same of a resource that an instance takes beside its devices (`NodeView.left`)."""
        view = self.nodes.get(node)
        have = 0 if view is None else view.left(resource)
        return None if have is None else have - self._reserved.get((node, resource), 0)

    def has_port(self, node: str, key: str) -> bool:
        """Whether a pod may take the host port that `requests.port_keys` names."""
        used = self.nodes[node].used
        return not any(
            used.get(other, 0) + self._reserved.get((node, other), 0)
            for other in port_conflicts(key)
        )

    def blocked(self, node: str, tolerations: Iterable[Toleration] = ()) -> Obstacle | None:
        """Why a node takes no new instance, or None when it does."""
        path = self._paths.get(node)
        if path is None:
            return Obstacle("outside", self.excluded.get(node, "not in the RoCEDomain"))
        if self.spec.cordoned:
            for level, value in zip(self.spec.levels, path, strict=True):
                if (level.name, value) in self.spec.cordoned:
                    return Obstacle("cordoned", f"Cordoned {level.name} {value}")
        view = self.nodes[node]
        if view.signals or view.ends_at is not None:
            if (end := self.end_of(node)) is not None:
                return Obstacle("ending", f"its end is announced by {end.text}")
            for signal in view.signals:
                if signal.kind == "condition" and signal.name in self.spec.degraded:
                    return Obstacle("degraded", f"Condition {signal.name}")
        return view.blocked(tolerations)

    def end_of(self, node: str) -> NodeEnd | None:
        """The announced end of a node; None for one that stays or that is not known."""
        view = self.nodes.get(node)
        if view is None or not (view.signals or view.ends_at is not None):
            return None
        return announced_end(node, view.signals, view.ends_at, self.spec.end_notices)

    def remember(self, key: Hashable, derived: Derived) -> None:
        """Keep something in `memo`; where that is full, what was kept longest ago goes."""
        self.memo.pop(key, None)
        if len(self.memo) >= MAX_KEPT:
            del self.memo[next(iter(self.memo))]
        self.memo[key] = derived

    def label(self, path: Path) -> str:
        """Shortest unambiguous name of a part: its own value, or the joined path."""
        return self.tree.label(path)

    def reserve(self, reservations: Iterable[Reservation]) -> Fabric:
        """The same tree with more promised."""
        return self._with(reservations, 1)

    def release(self, reservations: Iterable[Reservation]) -> Fabric:
        """The same tree as if this were given back (for what-if questions)."""
        return self._with(reservations, -1)

    def _with(self, reservations: Iterable[Reservation], sign: int) -> Fabric:
        reserved = dict(self._reserved)
        changed: set[str] = set()
        for r in reservations:
            changed.add(r.node)
            key = (r.node, r.resource)
            reserved[key] = reserved.get(key, 0) + sign * r.devices
        other = Fabric(self.tree, self.nodes, reserved)
        other.parent = self
        other.changed = frozenset(changed)
        return other

    def renewed(self, changed: Mapping[str, NodeView | None], reserved: Reserved) -> Fabric:
        """The fabric with these nodes as they are now, and with these reservations alone.

        Costs as much as what changed, and a copy of the map of nodes.

        Args:
            changed: every node of which anything differs, its reservations included; None for one
                that is gone or that the RoCEDomain does not select.
            reserved: all reservations. Not changed afterwards.
        """
        nodes = dict(self.nodes)
        for name, view in changed.items():
            if view is None:
                nodes.pop(name, None)
            else:
                nodes[name] = view
        if any(name not in self.nodes for name, view in changed.items() if view is not None):
            nodes = {name: nodes[name] for name in sorted(nodes)}
        other = Fabric(self.tree.with_nodes(changed), nodes, reserved)
        names = frozenset(changed)
        for key, known in self.memo.items():
            if (kept := known.after(names)) is not None:
                other.memo[key] = kept
        return other


def build_fabric(
    domain: RoCEDomain | TreeSpec,
    nodes: Iterable[NodeView],
    reservations: Iterable[Reservation] = (),
) -> Fabric:
    """The fabric of those nodes that the domain selects."""
    spec = domain if isinstance(domain, TreeSpec) else fabric_spec(domain)
    chosen = sorted((n for n in nodes if selects(spec, n)), key=lambda n: n.name)
    return Fabric(tree_of(spec, chosen), {n.name: n for n in chosen}, summed(reservations))


def summed(reservations: Iterable[Reservation]) -> Reserved:
    """Reservations by node and resource."""
    reserved: dict[tuple[str, str], int] = {}
    for r in reservations:
        reserved[r.node, r.resource] = reserved.get((r.node, r.resource), 0) + r.devices
    return reserved
