"""The numbers of a RoCEDomain's status. The largest P/D group that fits comes from `placement`."""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.topology.fabric import Fabric


@dataclass(frozen=True, slots=True)
class LevelSummary:
    """One level and how many parts it has."""

    name: str
    domains: int


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


def summarise(fabric: Fabric) -> DomainSummary:
    """Summarise the tree; same fabric, same answer."""
    views = [fabric.nodes[name] for name in sorted(fabric.nodes)]
    inside = [v for v in views if fabric.path(v.name) is not None]
    resources = sorted({r for v in inside for r in v.allocatable})
    paths = [p for v in inside if (p := fabric.path(v.name)) is not None]
    return DomainSummary(
        topology_version=fabric.version,
        nodes_total=len(views),
        nodes_ready=sum(1 for v in inside if v.ready),
        nodes_excluded=len(fabric.excluded),
        unhealthy_devices=sum(len(v.unhealthy) for v in inside),
        levels=tuple(
            LevelSummary(level.name, len({p[:depth] for p in paths}))
            for depth, level in enumerate(fabric.spec.levels, start=1)
        ),
        free=tuple(
            (r, sum(fabric.free(v.name, r) for v in inside if fabric.blocked(v.name) is None))
            for r in resources
        ),
        labels_complete=tuple(p.message for p in fabric.problems if p.kind == "LabelMissing"),
        tree_consistent=tuple(p.message for p in fabric.problems if p.kind == "SeveralParents"),
        node_problems=tuple(f"node {v.name}: {text}" for v in views for text in v.problems),
    )
