"""From RoCEDomain and Nodes to an immutable tree of fabric parts with their free devices.

`nodes` and `pods` make views of raw Kubernetes objects, `requests` counts what pods take, `spec`
reads the RoCEDomain, `tree` is the structure, `fabric` what is free in it, `summary` words it for
status. Choosing a place in the tree is `placement`'s work.
"""

from pdserve.topology.fabric import Fabric, Reserved, build_fabric
from pdserve.topology.nodes import (
    NodeView,
    Reservation,
    Taint,
    Toleration,
    node_view,
    reservation_of,
)
from pdserve.topology.pods import PodView, kept_pod, pod_view
from pdserve.topology.requests import pod_requests
from pdserve.topology.spec import FabricLevel, TreeSpec, fabric_spec
from pdserve.topology.summary import (
    DomainSummary,
    LeafTrouble,
    LevelSummary,
    summarise,
    summarise_some,
)
from pdserve.topology.tree import LabelProblem, Path, Tree, selects

__all__ = [
    "DomainSummary",
    "Fabric",
    "FabricLevel",
    "LabelProblem",
    "LeafTrouble",
    "LevelSummary",
    "NodeView",
    "Path",
    "PodView",
    "Reservation",
    "Reserved",
    "Taint",
    "Toleration",
    "Tree",
    "TreeSpec",
    "build_fabric",
    "fabric_spec",
    "kept_pod",
    "node_view",
    "pod_requests",
    "pod_view",
    "reservation_of",
    "selects",
    "summarise",
    "summarise_some",
]
