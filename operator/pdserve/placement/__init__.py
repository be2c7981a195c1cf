"""Which nodes a P/D group, or one instance of it, takes, and why.

Model and algorithm: traffic flows from prefill to decode only, so what matters is that each leaf
holds both roles in the group's ratio, not that everything sits together. `place` places whole
groups, `incremental` adds and removes single instances; both judge by `cost`, count with `capacity`
and pick nodes with `packing`. `apart` keeps a scenario off a single node. Every answer
explains itself. The tree comes from `topology`.
"""

from pdserve.placement.apart import place, place_instance
from pdserve.placement.cost import crossing_percent, traffic, weights
from pdserve.placement.incremental import choose_removal, spread_of
from pdserve.placement.place import largest_group, prepare, uniform_request
from pdserve.placement.sites import fatal_nodes, only_node, site_of
from pdserve.placement.types import (
    Assignment,
    Cell,
    Cost,
    GroupRequest,
    InstancePlacement,
    Mode,
    Nodes,
    NoFit,
    PlacedInstance,
    Placement,
    PlacementCandidate,
    Removal,
    Shape,
    Site,
    cell_text,
)

__all__ = [
    "Assignment",
    "Cell",
    "Cost",
    "GroupRequest",
    "InstancePlacement",
    "Mode",
    "NoFit",
    "Nodes",
    "PlacedInstance",
    "Placement",
    "PlacementCandidate",
    "Removal",
    "Shape",
    "Site",
    "cell_text",
    "choose_removal",
    "crossing_percent",
    "fatal_nodes",
    "largest_group",
    "only_node",
    "place",
    "place_instance",
    "prepare",
    "site_of",
    "spread_of",
    "traffic",
    "uniform_request",
    "weights",
]
