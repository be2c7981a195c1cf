"""A RoCEDomain reduced to what the tree needs. Next: `fabric` builds the tree from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pdserve.topology.notices import DEGRADED, END_NOTICES, EndSignal

if TYPE_CHECKING:
    from pdserve.api import RoCEDomain

HOSTNAME_LABEL = "kubernetes.io/hostname"


@dataclass(frozen=True, slots=True)
class FabricLevel:
    """One level of the fabric, e.g. leaf; crossing the uplink of a part costs `hop_cost`.

    Two nodes that differ at several levels cross the uplinks of all of them: costs add up, as in
    `forwarding`, which ranks decodes by the same sum.
    """

    name: str
    node_label: str
    hop_cost: int


@dataclass(frozen=True, slots=True)
class TreeSpec:
    """What the platform engineer declared. `levels` run from the outermost to the innermost."""

    name: str
    levels: tuple[FabricLevel, ...]
    selector: Mapping[str, str] = field(default_factory=dict)
    cordoned: frozenset[tuple[str, str]] = frozenset()
    """Pairs (level, value) that take no new instance."""
    missing: Literal["Exclude", "UnknownDomain"] = "Exclude"
    """What becomes of a node that lacks a level's label: left out, or a part of its own."""
    end_notices: tuple[EndSignal, ...] = END_NOTICES
    """What announces the end of a node."""
    degraded: frozenset[str] = DEGRADED
    """Conditions with which a node takes no new instance."""

    @property
    def leaf_depth(self) -> int:
        """How many levels lead to a leaf: all, less a last one that is the node itself."""
        if len(self.levels) > 1 and self.levels[-1].node_label == HOSTNAME_LABEL:
            return len(self.levels) - 1
        return len(self.levels)

    def depth_of(self, level: str) -> int | None:
        """Path length of a level's parts (outermost: 1); None for an unknown level."""
        for depth, candidate in enumerate(self.levels, start=1):
            if candidate.name == level:
                return depth
        return None

    @property
    def tier_costs(self) -> dict[str, int]:
        """Hop cost by level name, as peer and route tables carry it."""
        return {level.name: level.hop_cost for level in self.levels}


def fabric_spec(domain: RoCEDomain) -> TreeSpec:
    """Reduce an API object."""
    spec = domain.spec
    degraded = spec.degraded_conditions
    return TreeSpec(
        name=str(domain.metadata.name),
        levels=tuple(FabricLevel(v.name, v.node_label, int(v.hop_cost)) for v in spec.levels),
        selector=dict(spec.node_selector.match_labels),
        cordoned=frozenset((o.level, o.value) for o in spec.overrides if o.cordoned),
        end_notices=_end_notices(domain),
        degraded=DEGRADED if degraded is None else frozenset(degraded),
        missing="UnknownDomain" if spec.missing_label_policy == "UnknownDomain" else "Exclude",
    )


def _end_notices(domain: RoCEDomain) -> tuple[EndSignal, ...]:
    told = domain.spec.end_notices
    if told is None:
        return END_NOTICES
    return tuple(
        EndSignal("taint", n.taint, n.seconds)
        if n.taint is not None
        else EndSignal("condition", n.condition or "", n.seconds)
        for n in told
    )
