"""From RoCEDomain and Nodes to an immutable tree of fabric parts with their free devices.

`nodes` and `requests` read raw Kubernetes objects, `spec` the RoCEDomain, `fabric` holds the tree,
`summary` words it for status. Choosing a place in the tree is `placement`'s work.
"""

from pdserve.topology.fabric import Fabric, LabelProblem, Path, build_fabric
from pdserve.topology.nodes import (
    NodeView,
    Reservation,
    Taint,
    Toleration,
    node_view,
    reservation_of,
)
from pdserve.topology.requests import pod_devices, pod_requests
from pdserve.topology.spec import FabricLevel, TreeSpec, fabric_spec
from pdserve.topology.summary import DomainSummary, LevelSummary, summarise

__all__ = [
    "DomainSummary",
    "Fabric",
    "FabricLevel",
    "LabelProblem",
    "LevelSummary",
    "NodeView",
    "Path",
    "Reservation",
    "Taint",
    "Toleration",
    "TreeSpec",
    "build_fabric",
    "fabric_spec",
    "node_view",
    "pod_devices",
    "pod_requests",
    "reservation_of",
    "summarise",
]
