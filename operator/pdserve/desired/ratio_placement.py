"""Asks placement how many P/D groups of a shape can stand, for the ratio loop. Pure.

The loop must not ask for what cannot be placed. What the scenario itself holds now counts as
free: its instances are part of the groups asked about.
"""

from __future__ import annotations

from dataclasses import replace

from pdserve.desired.group_wanted import Reach, ScenarioGroupView, wanted_of
from pdserve.placement import NoFit, place
from pdserve.ratio.types import Counts, PlacementLimit
from pdserve.topology import Fabric, Reservation


def placement_limit(
    fabric: Fabric, view: ScenarioGroupView, counts: Counts, reach: Reach
) -> PlacementLimit | None:
    """None when `counts` can be placed, else how many P/D groups of that shape can."""
    wanted = wanted_of(view.group, counts, reach)
    held = [
        Reservation(m.pod, m.node, resource, count)
        for i in view.instances
        if i.fault is None
        for m in i.members
        for resource, count in m.holds.items()
    ]
    request = wanted.group_request()
    free = fabric.release(held)
    for placed in range(counts.groups):
        request = replace(request, more=placed + 1 < counts.groups)
        found = place(free, request)
        if isinstance(found, NoFit):
            return PlacementLimit(counts.prefill, counts.decode, placed, found.message)
        free = free.reserve(found.reservations)
        request = replace(request, beside=(*request.beside, found.site))
    return None
