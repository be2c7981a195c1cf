"""The numbers of a RoCEDomain's status. The largest P/D group that fits comes from `placement`.

Each leaf is read once and again when something in it changed: what is known of leaves stays in the
fabric's memo.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pdserve.topology.fabric import Fabric
from pdserve.topology.nodes import NodeView
from pdserve.topology.per_leaf import per_leaf, read_some
from pdserve.topology.tree import Path

_KEY = "summary"
_WHOLE = "summary of the domain"


@dataclass(frozen=True, slots=True)
class LevelSummary:
    """One level and how many parts it has."""

    name: str
    domains: int


@dataclass(frozen=True, slots=True)
class LeafTrouble:
    """A leaf in which something is not well."""

    leaf: Path
    away: tuple[str, ...]
    """Nodes that are not ready, by name."""
    unhealthy_devices: int


@dataclass(frozen=True, slots=True)
class DomainSummary:
    """Counts for `RoCEDomain.status`; `free` counts devices that a new instance could take."""

    topology_version: str
    nodes_total: int
    nodes_ready: int
    nodes_excluded: int
    unhealthy_devices: int
    levels: tuple[LevelSummary, ...]
    free: tuple[tuple[str, int], ...]
    labels_complete: tuple[str, ...]
    """Why LabelsComplete is False; empty when it is True."""
    tree_consistent: tuple[str, ...]
    """Why TreeConsistent is False; empty when it is True."""
    node_problems: tuple[str, ...]
    troubles: tuple[LeafTrouble, ...] = ()
    """Leaves in which nodes are not ready or devices not healthy, by path."""


def summarise(fabric: Fabric) -> DomainSummary:
    """Summarise the tree; same fabric, same answer."""
    known = fabric.memo.get(_WHOLE)
    if not isinstance(known, _Whole):
        known = _Whole(_summed(fabric))
        fabric.remember(_WHOLE, known)
    return known.summary


def _summed(fabric: Fabric) -> DomainSummary:
    leaves = per_leaf(fabric, _KEY, _leaf)
    outside = [fabric.nodes[name] for name in fabric.excluded]
    free: dict[str, int] = {}
    for leaf in leaves.values():
        for resource, count in leaf.free.items():
            free[resource] = free.get(resource, 0) + count
    problems = [p for leaf in leaves.values() for p in leaf.problems] + _problems(outside)
    return DomainSummary(
        topology_version=fabric.version,
        nodes_total=len(fabric.nodes),
        nodes_ready=sum(leaf.ready for leaf in leaves.values()),
        nodes_excluded=len(outside),
        unhealthy_devices=sum(leaf.unhealthy for leaf in leaves.values()),
        levels=tuple(
            LevelSummary(level.name, count)
            for level, count in zip(fabric.spec.levels, fabric.tree.counts, strict=True)
        ),
        free=tuple(sorted(free.items())),
        labels_complete=tuple(p.message for p in fabric.problems if p.kind == "LabelMissing"),
        tree_consistent=tuple(p.message for p in fabric.problems if p.kind == "SeveralParents"),
        node_problems=tuple(f"node {name}: {text}" for name, text in sorted(problems)),
        troubles=tuple(
            LeafTrouble(path, leaf.away, leaf.unhealthy)
            for path, leaf in sorted(leaves.items())
            if leaf.away or leaf.unhealthy
        ),
    )


def summarise_some(fabric: Fabric, most: int) -> bool:
    """Read up to `most` leaves for `summarise`; True when there was nothing to do, at no cost."""
    return read_some(fabric, _KEY, _leaf, most)


@dataclass(frozen=True, slots=True)
class _Whole:
    """The summary of one fabric; of no other."""

    summary: DomainSummary

    def after(self, changed: frozenset[str]) -> None:
        """See `fabric.Derived`: it is summed up again."""


@dataclass(frozen=True, slots=True)
class _Leaf:
    ready: int
    away: tuple[str, ...]
    unhealthy: int
    free: Mapping[str, int]
    """Of every resource that a node of the leaf has."""
    problems: tuple[tuple[str, str], ...]
    """Node and text."""


def _leaf(fabric: Fabric, path: Path) -> _Leaf:
    views = [fabric.nodes[name] for name in fabric.leaves[path]]
    free: dict[str, int] = {}
    for view in views:
        usable = fabric.blocked(view.name) is None
        for resource in view.allocatable:
            more = fabric.free(view.name, resource) if usable else 0
            free[resource] = free.get(resource, 0) + more
    away = tuple(v.name for v in views if not v.ready)
    unhealthy = sum(len(v.unhealthy) for v in views)
    return _Leaf(len(views) - len(away), away, unhealthy, free, tuple(_problems(views)))


def _problems(views: Iterable[NodeView]) -> list[tuple[str, str]]:
    return [(view.name, text) for view in views for text in view.problems]
