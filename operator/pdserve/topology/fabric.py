"""The fabric tree: which node hangs under which part, and what is free where.

A part is keyed by the full path of level values (outermost first), because leaf names repeat
under different parents in real data centres. The tree is immutable; `reserve` answers with a
new view over the same tree, so several placements of one plan see each other. Neighbours:
`nodes` fills it, `placement` asks it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pdserve.topology.nodes import NodeView, Reservation, Toleration
from pdserve.topology.obstacle import Obstacle
from pdserve.topology.requests import port_conflicts
from pdserve.topology.spec import TreeSpec, fabric_spec

if TYPE_CHECKING:
    from pdserve.api import RoCEDomain

Path = tuple[str, ...]
"""Level values from the outermost level inwards; a prefix names an upper part."""


@dataclass(frozen=True, slots=True, order=True)
class LabelProblem:
    """A flaw in node labels, for conditions LabelsComplete and TreeConsistent."""

    kind: Literal["LabelMissing", "SeveralParents"]
    message: str


class Fabric:
    """Immutable tree of the nodes of one RoCEDomain. Build it with `build_fabric`.

    Attributes are read-only by agreement. `memo` caches what others derive from this very view
    (placement's leaf counters); it never changes an answer.
    """

    __slots__ = (
        "_ambiguous_names",
        "_paths",
        "_reserved",
        "changed",
        "excluded",
        "leaves",
        "memo",
        "nodes",
        "parent",
        "parts",
        "problems",
        "spec",
        "version",
    )  # fmt: skip

    def __init__(
        self,
        spec: TreeSpec,
        nodes: Mapping[str, NodeView],
        paths: Mapping[str, Path],
        excluded: Mapping[str, str],
        problems: tuple[LabelProblem, ...],
        reserved: Mapping[tuple[str, str], int],
    ) -> None:
        self.spec = spec
        self.nodes = nodes
        self._paths = paths
        self.excluded = excluded
        """Selected nodes left out of the tree, with the reason."""
        self.problems = problems
        self._reserved = reserved
        self.memo: dict[Hashable, Any] = {}
        leaves: dict[Path, list[str]] = {}
        depth = spec.leaf_depth
        for name in sorted(paths):
            leaves.setdefault(paths[name][:depth], []).append(name)
        self.leaves: dict[Path, tuple[str, ...]] = {p: tuple(leaves[p]) for p in sorted(leaves)}
        parts: dict[Path, list[Path]] = {}
        for leaf in self.leaves:
            for level in range(depth):
                parts.setdefault(leaf[:level], []).append(leaf)
        self.parts: dict[Path, tuple[Path, ...]] = {p: tuple(parts[p]) for p in sorted(parts)}
        """Leaves under every part above them; the empty path is the whole domain."""
        self.parent: Fabric | None = None
        self.changed: frozenset[str] = frozenset()
        """Nodes on which other amounts are free than in `parent`."""
        self.version = _version(spec, paths)
        self._ambiguous_names: dict[int, frozenset[str]] = {}

    def path(self, node: str) -> Path | None:
        """Full path of a node, or None when it is not in the tree."""
        return self._paths.get(node)

    def leaf(self, node: str) -> Path | None:
        """Path of the leaf a node hangs under, or None when it is not in the tree."""
        path = self._paths.get(node)
        return None if path is None else path[: self.spec.leaf_depth]

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
        for level, value in zip(self.spec.levels, path, strict=True):
            if (level.name, value) in self.spec.cordoned:
                return Obstacle("cordoned", f"Cordoned {level.name} {value}")
        return self.nodes[node].blocked(tolerations)

    def label(self, path: Path) -> str:
        """Shortest unambiguous name of a part: its own value, or the joined path."""
        if not path:
            return "the whole domain"
        depth = len(path)
        if depth not in self._ambiguous_names:
            seen = Counter(p[-1] for p in {p[:depth] for p in self._paths.values()})
            self._ambiguous_names[depth] = frozenset(
                value for value, count in seen.items() if count > 1
            )
        return "/".join(path) if path[-1] in self._ambiguous_names[depth] else path[-1]

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
        return self._changed(changed, self.nodes, reserved)

    def renewed(self, views: Iterable[NodeView], reservations: Iterable[Reservation]) -> Fabric:
        """The same tree with these nodes as they are now, and with these reservations alone.

        `views`: of every node in which anything differs, with the labels that it had.
        """
        nodes = {v.name: v for v in views}
        reserved = _summed(reservations)
        return self._changed(nodes, {**self.nodes, **nodes}, reserved)

    def _changed(
        self,
        changed: Iterable[str],
        nodes: Mapping[str, NodeView],
        reserved: Mapping[tuple[str, str], int],
    ) -> Fabric:
        other = Fabric.__new__(Fabric)
        for slot in Fabric.__slots__:
            setattr(other, slot, getattr(self, slot))
        other.nodes = nodes
        other._reserved = reserved
        other.memo = {}
        other.parent = self
        other.changed = frozenset(changed)
        return other


def build_fabric(
    domain: RoCEDomain | TreeSpec,
    nodes: Sequence[NodeView],
    reservations: Iterable[Reservation] = (),
) -> Fabric:
    """Build the tree from the nodes that the domain selects.

    Phases: 1 select and order nodes by name; 2 read each one's path from labels, by the policy
    for missing ones; 3 look for values under several parents; 4 sum reservations.
    """
    spec = domain if isinstance(domain, TreeSpec) else fabric_spec(domain)
    # 1
    chosen = sorted(
        (n for n in nodes if all(n.labels.get(k) == v for k, v in spec.selector.items())),
        key=lambda n: n.name,
    )
    # 2
    paths: dict[str, Path] = {}
    excluded: dict[str, str] = {}
    missing: dict[str, list[str]] = {}
    for node in chosen:
        values = tuple(node.labels.get(level.node_label) for level in spec.levels)
        lacking = [v.node_label for v, x in zip(spec.levels, values, strict=True) if not x]
        for label in lacking:
            missing.setdefault(label, []).append(node.name)
        if lacking and spec.missing == "Exclude":
            excluded[node.name] = f"label {lacking[0]} missing"
        else:
            paths[node.name] = tuple(v or _own_part(node.name) for v in values)
    problems = [
        LabelProblem("LabelMissing", f"label {label} missing on {_names(found)}")
        for label, found in sorted(missing.items())
    ]
    # 3
    problems += _several_parents(spec, paths)
    # 4
    views = {n.name: n for n in chosen}
    return Fabric(spec, views, paths, excluded, tuple(problems), _summed(reservations))


def _summed(reservations: Iterable[Reservation]) -> dict[tuple[str, str], int]:
    reserved: dict[tuple[str, str], int] = {}
    for r in reservations:
        reserved[r.node, r.resource] = reserved.get((r.node, r.resource), 0) + r.devices
    return reserved


def _several_parents(spec: TreeSpec, paths: Mapping[str, Path]) -> list[LabelProblem]:
    problems: list[LabelProblem] = []
    for depth in range(2, len(spec.levels) + 1):
        parents: dict[str, set[Path]] = {}
        for path in paths.values():
            parents.setdefault(path[depth - 1], set()).add(path[: depth - 1])
        for value, above in sorted(parents.items()):
            if len(above) > 1:
                found = ", ".join("/".join(p) for p in sorted(above))
                level, outer = spec.levels[depth - 1].name, spec.levels[depth - 2].name
                problems.append(
                    LabelProblem(
                        "SeveralParents",
                        f"{level} {value!r} appears under {len(above)} {outer}s: {found}; they are "
                        "treated as different parts, correct the labels if they are one",
                    )
                )
    return problems


def _own_part(node: str) -> str:
    """A part for one node of unknown position: as far from every other as can be.

    It becomes the value of a pod label, hence at most 63 characters.
    """
    value = f"unknown-{node}"
    return (
        value if len(value) <= 63 else "unknown-" + hashlib.sha256(node.encode()).hexdigest()[:16]
    )


def _names(found: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(found[:most])
    return shown if len(found) <= most else f"{shown} and {len(found) - most} more nodes"


def _version(spec: TreeSpec, paths: Mapping[str, Path]) -> str:
    """Hash of the declared levels and every node's path: changes with topology, not with load."""
    levels = [[v.name, v.node_label, v.hop_cost] for v in spec.levels]
    text = json.dumps([levels, sorted((n, list(p)) for n, p in paths.items())])
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()[:16]
