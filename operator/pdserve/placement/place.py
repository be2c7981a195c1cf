"""Place a whole P/D group by topology alone, or say precisely why not.

Phases: 1 candidates (`candidates`); 2 the cheapest by true cost, then in the order generated;
3 nodes.
Pure and deterministic: same fabric and request, same answer, byte for byte. `apart` then looks at
what the loss of one node would do.
"""

from __future__ import annotations

from collections.abc import Sequence

from pdserve.placement.candidates import Option, options_for, scopes
from pdserve.placement.capacity import Capacity, Room, capacity_for, count_some
from pdserve.placement.cost import weights
from pdserve.placement.packing import nodes_in_leaf
from pdserve.placement.refusal import found_in, prepare_refusal, why_not
from pdserve.placement.types import (
    Assignment,
    Cell,
    Cost,
    GroupRequest,
    Nodes,
    NoFit,
    Placement,
    PlacementCandidate,
    Shape,
    cell_text,
)
from pdserve.terms import Role
from pdserve.topology import Fabric

_SHOWN = 3


def place_closest(fabric: Fabric, request: GroupRequest) -> Placement | NoFit:
    """Find nodes for all instances of `request` by topology alone, or none."""
    problem = level_problem(fabric, request)
    if problem:
        return NoFit(problem)
    capacity = capacity_for(fabric, request)
    costs = weights(fabric, request.level if request.mode == "Preferred" else None)
    options = options_for(fabric, capacity, request, costs)
    if not options:
        return _no_fit(fabric, capacity, request)
    best = min(range(len(options)), key=lambda k: (options[k].cost, k))
    return _answer(fabric, capacity, request, options, best)


def prepare(fabric: Fabric, request: GroupRequest, most: int) -> bool:
    """Count up to `most` leaves that a place for `request` is found by, or why there is none.

    True when nothing was left to do but to count the leaves of a few nodes that changed. What was
    counted goes over to fabrics that follow this one, so a caller may let others run and ask that
    one. Where the group fits wherever it may be, why not is not asked, and not prepared.
    """
    if not count_some(fabric, request, most):
        return False
    return _fits_everywhere(fabric, request) or prepare_refusal(fabric, request, most)


def _fits_everywhere(fabric: Fabric, request: GroupRequest) -> bool:
    """Whether each part that the group may not leave holds it whole, so that no place is refused.

    An instance more of a group is looked for in the part that the group is in: any of them.
    """
    if level_problem(fabric, request):
        return False
    capacity = capacity_for(fabric, request)
    asked = request.prefill, request.decode
    return all(capacity.part(*part).fits(*asked) for part in scopes(fabric, request))


def largest_group(fabric: Fabric, request: GroupRequest) -> tuple[int, int] | None:
    """The largest P/D group that fits now, at most the one asked for, in its locality.

    Largest: the greatest share of the asked ratio on both sides, then the most instances, then
    the most prefills. None when not even 1P1D fits.
    """
    if level_problem(fabric, request):
        return None
    return _largest(fabric, capacity_for(fabric, request), request)


def uniform_request(prefill: Shape, decode: Shape, most: int = 64) -> GroupRequest:
    """For `largest_group`: a P/D group of any ratio up to `most` a side (RoCEDomain status)."""
    return GroupRequest(most, most, prefill, decode)


def level_problem(fabric: Fabric, request: GroupRequest) -> str | None:
    """Why the locality level cannot be meant, or None."""
    if request.level is None or fabric.spec.depth_of(request.level) is not None:
        return None
    known = ", ".join(level.name for level in fabric.spec.levels)
    return (
        f"fabric.locality.level {request.level!r} is not a level of RoCEDomain "
        f"{fabric.spec.name!r}; its levels are {known}"
    )


def _answer(
    fabric: Fabric, capacity: Capacity, request: GroupRequest, options: Sequence[Option], best: int
) -> Placement:
    chosen = options[best]
    cells = tuple(Cell(leaf, p, d) for leaf, (p, d) in sorted(chosen.spread.items()))
    nodes: dict[Role, list[Nodes]] = {"prefill": [], "decode": []}
    for cell in cells:
        prefills, decodes = nodes_in_leaf(capacity, cell.leaf, cell.prefill, cell.decode)
        nodes["prefill"] += prefills
        nodes["decode"] += decodes
    assignments = tuple(
        Assignment(role, k, its) for role, found in nodes.items() for k, its in enumerate(found)
    )
    candidates = tuple(
        PlacementCandidate(
            option.kind,
            tuple(Cell(leaf, p, d) for leaf, (p, d) in sorted(option.spread.items())),
            option.cost,
            "won" if k == best else _why_lost(option.cost, chosen.cost),
        )
        for k, option in enumerate(options)
    )
    ordered = sorted(candidates, key=lambda c: (c.verdict != "won", c.cost))
    lines = [
        f"{c.kind} [{', '.join(cell_text(fabric, x) for x in c.cells)}]: {c.cost}: {c.verdict}"
        for c in ordered[:_SHOWN]
    ]
    if len(ordered) > _SHOWN:
        lines.append(f"{len(ordered) - _SHOWN} costlier candidates not shown")
    return Placement(
        assignments=assignments,
        cells=cells,
        cost=chosen.cost,
        candidates=candidates,
        explanation=tuple(lines),
        reservations=tuple(
            r
            for a in assignments
            for r in request.shape(a.role).reservations(f"{a.role}-{a.ordinal}", a.nodes)
        ),
    )


def _why_lost(cost: Cost, winner: Cost) -> str:
    for term in ("unplaced", "traffic", "slots_lost", "domains", "leftover"):
        mine, best = getattr(cost, term), getattr(winner, term)
        if mine != best:
            return f"lost on {term.replace('_', ' ')}: {mine} against {best}"
    return "lost: equal cost, generated later"


def _no_fit(fabric: Fabric, capacity: Capacity, request: GroupRequest) -> NoFit:
    largest = _largest(fabric, capacity, request)
    wanted = f"{request.prefill}P{request.decode}D"
    shapes = _shapes(request)
    placed, where = 0, "the whole domain"
    for path, leaves in scopes(fabric, request):
        count = _most_placed(capacity.part(path, leaves), request)
        if count > placed:
            placed, where = count, fabric.label(path)
    short = request.prefill + request.decode - placed
    free = found_in(fabric, request, fabric.leaves).free
    missing = f"{short} of {request.prefill + request.decode} instances have no node"
    if request.mode == "Required":
        inner = fabric.spec.levels[fabric.spec.leaf_depth - 1].name
        missing += f" inside one {request.level or inner} (most room: {where})"
    fits = f"{largest[0]}P{largest[1]}D" if largest else "none, not even 1P1D"
    message = (
        f"{wanted} ({shapes}) does not fit: {missing}; {free} devices are free on usable "
        f"nodes; largest P/D group that fits now: {fits}{why_not(fabric, request)}"
    )
    return NoFit(message)


def _shapes(request: GroupRequest) -> str:
    p, d = request.prefill_shape, request.decode_shape
    if p.devices_text == d.devices_text:
        return f"{p.devices_text} each"
    return f"prefill {p.devices_text}, decode {d.devices_text}"


def _most_placed(room: Room, request: GroupRequest) -> int:
    """The most instances of the request that fit, whatever their ratio."""
    best = 0
    for p in range(request.prefill + 1):
        d = room.most_decodes(p)
        if d < 0:
            break
        best = max(best, p + min(d, request.decode))
    return best


def _largest(fabric: Fabric, capacity: Capacity, request: GroupRequest) -> tuple[int, int] | None:
    best: tuple[int, int, int, int] | None = None
    for path, leaves in scopes(fabric, request):
        room = capacity.part(path, leaves)
        for p in range(1, request.prefill + 1):
            d = min(request.decode, room.most_decodes(p))
            if d < 1:
                break
            key = (min(p * request.decode, d * request.prefill), p + d, p, d)
            if best is None or key > best:
                best = key
    return None if best is None else (best[2], best[3])
