"""Why there is no place: what is free, which nodes are out of use, and what others are short of.

A ScenarioGroup that waits asks again after every change of a node, so what each leaf contributes is
kept in the fabric (`topology.per_leaf`). Neighbours: `place` and `incremental` put it into words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pdserve.placement.beside import shortage, shortage_text
from pdserve.placement.types import GroupRequest, Shape
from pdserve.terms import ROLES, Role
from pdserve.topology import Fabric, Path
from pdserve.topology.affinity import term_text
from pdserve.topology.per_leaf import per_leaf, read_some

_SHOWN_REASONS = 3
_SHOWN_SHORTAGES = 6
_LONGEST_REASON = 200
_NO_NODES: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Supply:
    """What some nodes have for instances of some shapes."""

    free: int = 0
    """Devices that are free on nodes that one of the shapes may use, whatever else is short."""
    most: int = 0
    """Most of them on one node."""
    usable: int = 0
    """Nodes that all of the shapes may use."""
    reasons: Mapping[str, int] | None = None
    """Other nodes, by why not."""
    lacking: Mapping[tuple[str, int], int] | None = None
    """Usable nodes that have less of a resource than an amount of it."""


def found_in(
    fabric: Fabric, request: GroupRequest, leaves: Iterable[Path], roles: Sequence[Role] = ROLES
) -> Supply:
    """What these leaves have for instances of these roles, without suspects."""
    shapes = tuple(request.shape(role) for role in roles)
    known = per_leaf(fabric, ("found", *shapes), partial(_in_leaf, shapes))
    suspects = {leaf for n in request.exclude if (leaf := fabric.leaf(n)) is not None}
    return _sum(
        _in_leaf(shapes, fabric, leaf, request.exclude) if leaf in suspects else known[leaf]
        for leaf in leaves
    )


def prepare_refusal(fabric: Fabric, request: GroupRequest, most: int) -> bool:
    """Read up to `most` leaves for `found_in`; True when there was nothing to do, at no cost."""
    shapes = tuple(request.shape(role) for role in ROLES)
    return read_some(fabric, ("found", *shapes), partial(_in_leaf, shapes), most)


def why_not(fabric: Fabric, request: GroupRequest, roles: Sequence[Role] = ROLES) -> str:
    """Nodes out of use, by reason, and what those in use are short of; "" for neither."""
    shapes = {role: request.shape(role) for role in roles}
    inside = found_in(fabric, request, fabric.leaves, roles)
    outside = _of_nodes(tuple(shapes.values()), fabric, fabric.excluded, request.exclude)
    found = _sum((inside, outside))
    ordered = sorted((found.reasons or {}).items(), key=lambda item: (-item[1], item[0]))
    told = [f"{count} ({reason})" for reason, count in ordered[:_SHOWN_REASONS]]
    short = _shortages(found, shapes)[:_SHOWN_SHORTAGES]
    return "".join(
        f"; {line}"
        for line in (*(["nodes out of use: " + ", ".join(told)] if told else []), *short)
    )


def _shortages(found: Supply, shapes: Mapping[Role, Shape]) -> list[str]:
    """What keeps an instance off some usable nodes, resource by resource, with numbers."""
    told: dict[str, list[str]] = {}
    for role, shape in shapes.items():
        for resource, amount in shape.requests:
            lacking = (found.lacking or {}).get((resource, amount), 0)
            if lacking:
                line = shortage_text(resource, amount, lacking, found.usable)
                told.setdefault(line, []).append(role)
    return [
        line if len(roles) == len(shapes) else f"{line} for a {' or '.join(roles)}"
        for line, roles in sorted(told.items())
    ]


def _in_leaf(
    shapes: tuple[Shape, ...], fabric: Fabric, leaf: Path, exclude: frozenset[str] = _NO_NODES
) -> Supply:
    return _of_nodes(shapes, fabric, fabric.leaves[leaf], exclude)


def _of_nodes(
    shapes: tuple[Shape, ...], fabric: Fabric, nodes: Iterable[str], exclude: frozenset[str]
) -> Supply:
    free = most = usable = 0
    reasons: Counter[str] = Counter()
    lacking: Counter[tuple[str, int]] = Counter()
    needs = {need for shape in shapes for need in shape.requests}
    for name in nodes:
        told = [_out_of_use(fabric, exclude, name, shape) for shape in shapes]
        if name not in exclude:
            may = {s.resource for s, why in zip(shapes, told, strict=True) if why is None}
            amounts = [fabric.free(name, resource) for resource in may]
            free, most = free + sum(amounts), max(most, *amounts, 0)
        reason = next((why for why in told if why is not None), None)
        if reason is not None:
            reasons[reason] += 1
            continue
        usable += 1
        lacking.update(need for need in needs if shortage(fabric, name, *need))
    return Supply(free, most, usable, reasons, lacking)


def _sum(parts: Iterable[Supply]) -> Supply:
    free = most = usable = 0
    reasons: Counter[str] = Counter()
    lacking: Counter[tuple[str, int]] = Counter()
    for part in parts:
        free, most, usable = free + part.free, max(most, part.most), usable + part.usable
        for total, more in ((reasons, part.reasons), (lacking, part.lacking)):
            if more:
                total.update(more)  # type: ignore[arg-type]  # of the same kind each
    return Supply(free, most, usable, reasons, lacking)


def _out_of_use(fabric: Fabric, exclude: frozenset[str], node: str, shape: Shape) -> str | None:
    """Why the shape may not be on a node, whatever is free there."""
    obstacle = fabric.blocked(node, shape.tolerations)
    if obstacle is not None:
        return obstacle.text
    if node in exclude:
        return "suspect after a fault"
    if not shape.reaches(node):
        return "a volume is elsewhere"
    if not shape.selects(fabric.nodes[node]):
        wanted = " or ".join(sorted(map(term_text, shape.selector or ())))
        return f"the template wants {wanted}"[:_LONGEST_REASON]
    return None
