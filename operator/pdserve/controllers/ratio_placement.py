"""Asks placement how many P/D groups of a shape can stand, for the ratio loop. Pure.

The loop must not ask for what cannot be placed. What the scenario itself holds now counts as
free: its instances are part of the groups asked about.
"""

from __future__ import annotations

from pdserve.controllers.group_view import GroupView, Reach, wanted_of
from pdserve.groups.types import RoleWanted
from pdserve.placement import GroupRequest, NoFit, Shape, place
from pdserve.ratio.types import Counts, PlacementLimit
from pdserve.topology import Fabric, Reservation
from pdserve.wire.peers import Role


def placement_limit(
    fabric: Fabric, view: GroupView, counts: Counts, reach: Reach
) -> PlacementLimit | None:
    """None when `counts` can be placed, else how many P/D groups of that shape can."""
    wanted = wanted_of(view.group, counts, reach)
    roles: dict[Role, RoleWanted] = {"prefill": wanted.prefill, "decode": wanted.decode}
    held = [
        Reservation(i.name, i.node, roles[i.role].resource, roles[i.role].devices)
        for i in view.instances
        if i.fault is None
    ]
    request = GroupRequest(
        prefill=counts.prefill,
        decode=counts.decode,
        prefill_shape=_shape(wanted.prefill),
        decode_shape=_shape(wanted.decode),
        mode=wanted.locality_mode,
        level=wanted.locality_level,
    )
    free = fabric.release(held)
    for placed in range(counts.groups):
        found = place(free, request)
        if isinstance(found, NoFit):
            return PlacementLimit(counts.prefill, counts.decode, placed, found.message)
        free = free.reserve(found.reservations)
    return None


def _shape(role: RoleWanted) -> Shape:
    return Shape(role.resource, role.devices, role.tolerations, role.nodes)
