"""The structure of a fabric: which node hangs under which part. What is free there is `fabric`'s.

A part is keyed by the full path of level values (outermost first), because leaf names repeat
under different parents in real data centres. A tree is immutable. `with_nodes` makes the next one
from what changed, at a cost of the changed nodes and of copying the maps, not of reading all nodes
again; a fresh tree of the same nodes is equal to it in all that can be asked.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pdserve.topology.nodes import NodeView
from pdserve.topology.spec import TreeSpec

Path = tuple[str, ...]
"""Level values from the outermost level inwards; a prefix names an upper part."""

_MODULUS = 1 << 128


@dataclass(frozen=True, slots=True, order=True)
class LabelProblem:
    """A flaw in node labels, for conditions LabelsComplete and TreeConsistent."""

    kind: Literal["LabelMissing", "SeveralParents"]
    message: str


@dataclass(frozen=True, slots=True)
class _Position:
    """Where one node is: None outside the tree. `lacking`: labels that it should have."""

    path: Path | None = None
    lacking: tuple[str, ...] = ()


_AWAY = _Position()


class Tree:
    """Immutable structure of the nodes that a RoCEDomain selects. Make the first with `tree_of`."""

    def __init__(self, spec: TreeSpec) -> None:
        """A tree without nodes."""
        self.spec = spec
        self.paths: Mapping[str, Path] = {}
        """Full path of each node in the tree."""
        self.leaves: Mapping[Path, tuple[str, ...]] = {}
        """Nodes under each leaf, by name; leaves by path."""
        self.parts: Mapping[Path, tuple[Path, ...]] = {}
        """Leaves under every part above them; the empty path is the whole domain."""
        self._lacking: Mapping[str, tuple[str, ...]] = {}
        """Labels that nodes should have and do not have."""
        self._digest = 0
        """Sum of one hash per node of the tree, so that it follows changes."""

    def with_nodes(self, changed: Mapping[str, NodeView | None]) -> Tree:
        """The tree with these nodes as they are now; this very one if none of them moved.

        `changed`: by name; None for a node that is gone or that the RoCEDomain does not select.
        """
        moved = {
            name: position
            for name, node in changed.items()
            if (position := self._position(node)) != self._known(name)
        }
        if not moved:
            return self
        other = Tree(self.spec)
        paths, lacking = dict(self.paths), dict(self._lacking)
        digest = self._digest
        left: dict[Path, set[str]] = {}
        joined: dict[Path, set[str]] = {}
        depth = self.spec.leaf_depth
        for name, position in moved.items():
            lacking.pop(name, None)
            if position.lacking:
                lacking[name] = position.lacking
            before = paths.pop(name, None)
            if before is not None:
                digest -= _hash(name, before)
                left.setdefault(before[:depth], set()).add(name)
            if position.path is not None:
                paths[name] = position.path
                digest += _hash(name, position.path)
                joined.setdefault(position.path[:depth], set()).add(name)
        other.paths, other._lacking = paths, lacking
        other._digest = digest % _MODULUS
        other.leaves, same = _moved(self.leaves, left, joined)
        other.parts = self.parts if same else _parts(other.leaves, depth)
        return other

    def leaf(self, node: str) -> Path | None:
        """Path of the leaf a node hangs under, or None when it is not in the tree."""
        path = self.paths.get(node)
        return None if path is None else path[: self.spec.leaf_depth]

    def _known(self, name: str) -> _Position:
        return _Position(self.paths.get(name), self._lacking.get(name, ()))

    def _position(self, node: NodeView | None) -> _Position:
        spec = self.spec
        if node is None or not selects(spec, node):
            return _AWAY
        values = tuple(node.labels.get(level.node_label) for level in spec.levels)
        lacking = tuple(v.node_label for v, x in zip(spec.levels, values, strict=True) if not x)
        if lacking and spec.missing == "Exclude":
            return _Position(None, lacking)
        return _Position(tuple(v or _own_part(node.name) for v in values), lacking)

    @cached_property
    def excluded(self) -> Mapping[str, str]:
        """Selected nodes left out of the tree, with the reason."""
        return {
            name: f"label {labels[0]} missing"
            for name, labels in sorted(self._lacking.items())
            if name not in self.paths
        }

    @cached_property
    def problems(self) -> tuple[LabelProblem, ...]:
        """Flaws in node labels: missing ones by label, then parts under several parents."""
        missing: dict[str, list[str]] = {}
        for node, labels in sorted(self._lacking.items()):
            for label in labels:
                missing.setdefault(label, []).append(node)
        found = [
            LabelProblem("LabelMissing", f"label {label} missing on {_names(nodes)}")
            for label, nodes in sorted(missing.items())
        ]
        return (*found, *_several_parents(self.spec, set(self.paths.values())))

    @cached_property
    def version(self) -> str:
        """Hash of the declared levels and every node's path: changes with topology, not with
        load.
        """
        levels = [[v.name, v.node_label, v.hop_cost] for v in self.spec.levels]
        text = json.dumps([levels, self._digest])
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """How many parts each level has, from the outermost."""
        depths = range(1, len(self.spec.levels) + 1)
        inner = self.spec.leaf_depth
        return tuple(
            len({p[:depth] for p in (self.leaves if depth <= inner else self.paths.values())})
            for depth in depths
        )

    def label(self, path: Path) -> str:
        """Shortest unambiguous name of a part: its own value, or the joined path."""
        if not path:
            return "the whole domain"
        return "/".join(path) if path[-1] in self._repeated[len(path)] else path[-1]

    @cached_property
    def _repeated(self) -> tuple[frozenset[str], ...]:
        """By depth, values that several parts have."""
        paths = set(self.paths.values())
        found: list[frozenset[str]] = [frozenset()]
        for depth in range(1, len(self.spec.levels) + 1):
            seen = Counter(p[-1] for p in {p[:depth] for p in paths})
            found.append(frozenset(value for value, count in seen.items() if count > 1))
        return tuple(found)


def tree_of(spec: TreeSpec, nodes: Iterable[NodeView]) -> Tree:
    """The tree of the nodes that `spec` selects."""
    return Tree(spec).with_nodes({node.name: node for node in nodes})


def selects(spec: TreeSpec, node: NodeView) -> bool:
    """Whether the RoCEDomain is about this node."""
    return all(node.labels.get(k) == v for k, v in spec.selector.items())


def _moved(
    leaves: Mapping[Path, tuple[str, ...]],
    left: Mapping[Path, set[str]],
    joined: Mapping[Path, set[str]],
) -> tuple[Mapping[Path, tuple[str, ...]], bool]:
    """Leaves after nodes left and joined, and whether there are the same ones as before."""
    after = dict(leaves)
    for leaf in {*left, *joined}:
        nodes = {*leaves.get(leaf, ())} - left.get(leaf, set()) | joined.get(leaf, set())
        if nodes:
            after[leaf] = tuple(sorted(nodes))
        else:
            after.pop(leaf, None)
    if after.keys() == leaves.keys():
        return after, True
    return {leaf: after[leaf] for leaf in sorted(after)}, False


def _parts(leaves: Iterable[Path], depth: int) -> Mapping[Path, tuple[Path, ...]]:
    parts: dict[Path, list[Path]] = {}
    for leaf in leaves:
        for level in range(depth):
            parts.setdefault(leaf[:level], []).append(leaf)
    return {p: tuple(parts[p]) for p in sorted(parts)}


def _hash(node: str, path: Path) -> int:
    text = json.dumps([node, list(path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")


def _several_parents(spec: TreeSpec, paths: Iterable[Path]) -> list[LabelProblem]:
    problems: list[LabelProblem] = []
    for depth in range(2, len(spec.levels) + 1):
        parents: dict[str, set[Path]] = {}
        for path in paths:
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
