"""The numbers of a RoCEDomain's status. The largest P/D group that fits comes from `placement`.

Each leaf is read once and again when something in it changed, and sums follow those leaves: what is
known stays in the fabric's memo.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pdserve.topology.fabric import Fabric
from pdserve.topology.nodes import NodeView
from pdserve.topology.per_leaf import per_leaf, read_some
from pdserve.topology.tree import Path

_KEY = "summary"
_SUMS = "sums over leaves"
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
        before = fabric.memo.get(_SUMS)
        sums = _sums(
            per_leaf(fabric, _KEY, _leaf), before if isinstance(before, _Sums) else _NOTHING
        )
        fabric.remember(_SUMS, sums)
        known = _Whole(_summed(fabric, sums))
        fabric.remember(_WHOLE, known)
    return known.summary


def _summed(fabric: Fabric, sums: _Sums) -> DomainSummary:
    noted = sorted(sums.noted.items())
    outside = [fabric.nodes[name] for name in fabric.excluded]
    problems = [p for _, leaf in noted for p in leaf.problems] + _problems(outside)
    return DomainSummary(
        topology_version=fabric.version,
        nodes_total=len(fabric.nodes),
        nodes_ready=sums.ready,
        nodes_excluded=len(outside),
        unhealthy_devices=sums.unhealthy,
        levels=tuple(
            LevelSummary(level.name, count)
            for level, count in zip(fabric.spec.levels, fabric.tree.counts, strict=True)
        ),
        free=tuple(sorted((name, free) for name, (free, _) in sums.free.items())),
        labels_complete=tuple(p.message for p in fabric.problems if p.kind == "LabelMissing"),
        tree_consistent=tuple(p.message for p in fabric.problems if p.kind == "SeveralParents"),
        node_problems=tuple(f"node {name}: {text}" for name, text in sorted(problems)),
        troubles=tuple(
            LeafTrouble(path, leaf.away, leaf.unhealthy)
            for path, leaf in noted
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
        """See `fabric.Derived`: it is made from the sums again."""


@dataclass(frozen=True, slots=True)
class _Leaf:
    ready: int
    away: tuple[str, ...]
    unhealthy: int
    free: Mapping[str, int]
    """Of every resource that a node of the leaf has."""
    problems: tuple[tuple[str, str], ...]
    """Node and text."""


@dataclass(frozen=True, slots=True)
class _Sums:
    """Over leaves."""

    leaves: Mapping[Path, _Leaf]
    ready: int
    unhealthy: int
    free: Mapping[str, tuple[int, int]]
    """By resource: devices, and leaves that have it."""
    noted: Mapping[Path, _Leaf]
    """Leaves with problems, nodes that are away, or unhealthy devices."""

    def after(self, changed: frozenset[str]) -> _Sums:
        """See `fabric.Derived`: they follow the leaves that changed."""
        return self


_NOTHING = _Sums({}, 0, 0, {}, {})


def _sums(leaves: Mapping[Path, _Leaf], before: _Sums) -> _Sums:
    """The sums of these leaves, of which only those are looked at that differ from before."""
    old = before.leaves
    gone = [path for path, leaf in old.items() if leaves.get(path) is not leaf]
    come = [path for path, leaf in leaves.items() if old.get(path) is not leaf]
    ready, unhealthy = before.ready, before.unhealthy
    free, noted = dict(before.free), dict(before.noted)
    for sign, paths, source in ((-1, gone, old), (1, come, leaves)):
        for path in paths:
            leaf = source[path]
            ready += sign * leaf.ready
            unhealthy += sign * leaf.unhealthy
            for name, count in leaf.free.items():
                devices, holders = free.get(name, (0, 0))
                free[name] = (devices + sign * count, holders + sign)
            noted.pop(path, None)
            if sign > 0 and (leaf.problems or leaf.away or leaf.unhealthy):
                noted[path] = leaf
    kept = {name: both for name, both in free.items() if both[1]}
    return _Sums(leaves, ready, unhealthy, kept, noted)


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
