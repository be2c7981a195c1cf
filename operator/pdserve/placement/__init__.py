"""Which nodes a P/D group, or one instance of it, takes, and why.

Model and algorithm: traffic flows from prefill to decode only, so what matters is that each leaf
holds both roles in the group's ratio, not that everything sits together. `place` places whole
groups, `incremental` adds and removes single instances; both judge by `cost`, count with `rooms`
and pick nodes with `packing`. Every answer explains itself. The tree comes from `topology`.
"""

from pdserve.placement.cost import crossing_percent, traffic, weights
from pdserve.placement.incremental import choose_removal, place_instance, spread_of
from pdserve.placement.place import largest_group, largest_uniform_group, place
from pdserve.placement.types import (
    Assignment,
    Candidate,
    Cell,
    Cost,
    GroupRequest,
    InstancePlacement,
    Member,
    Mode,
    NoFit,
    Placement,
    Removal,
    Shape,
    cell_text,
)

__all__ = [
    "Assignment",
    "Candidate",
    "Cell",
    "Cost",
    "GroupRequest",
    "InstancePlacement",
    "Member",
    "Mode",
    "NoFit",
    "Placement",
    "Removal",
    "Shape",
    "cell_text",
    "choose_removal",
    "crossing_percent",
    "largest_group",
    "largest_uniform_group",
    "place",
    "place_instance",
    "spread_of",
    "traffic",
    "weights",
]
