"""The true state of the simulated cluster.

The operator reads the same objects through caches and a bad network.
"""

from __future__ import annotations

from pdserve.dst.moments import now
from pdserve.dst.world import World
from pdserve.dst.world_engines import SimulatedEngine
from pdserve.kube.resource import NODES, Object, ObjectKey
from pdserve.terms.times import timestamp
from pdserve.wire.pin import pinned_node

STARTS = 10.0
"""Seconds for which a pod that was made counts as one that will run; then its node may be at
fault."""


def healthy(world: World, pod: Object) -> bool:
    """Whether its container runs on a node that is there: nothing but a plan may end it."""
    meta = pod["metadata"]
    if "deletionTimestamp" in meta or pod.get("status", {}).get("phase") != "Running":
        return False
    node = world.api.store(NODES).objects.get(ObjectKey("", pod["spec"]["nodeName"]))
    if node is None or pod["spec"]["nodeName"] in world.broken_nodes:
        return False
    engine = engine_of(world, pod)
    return engine is not None and not engine.frozen and meta["name"] not in world.crashing


def starts(world: World, pod: Object) -> bool:
    """Whether it was made a moment ago, and nothing keeps it from starting."""
    meta = pod["metadata"]
    if "deletionTimestamp" in meta or pod.get("status", {}).get("phase") != "Pending":
        return False
    node = pod["spec"].get("nodeName") or pinned_node(pod)
    lost = node in world.broken_nodes or meta["name"] in world.refused
    age = now() - (timestamp(meta["creationTimestamp"]) or 0.0)
    return not lost and age < STARTS


def is_cordoned(world: World, pod: Object) -> bool:
    """Whether the node that it is on, or pinned to, takes no new pods."""
    name = pod["spec"].get("nodeName") or pinned_node(pod) or ""
    node = world.api.store(NODES).objects.get(ObjectKey("", name))
    return node is not None and bool(node["spec"].get("unschedulable"))


def engine_of(world: World, pod: Object) -> SimulatedEngine | None:
    """The engine that answers at its address; None while there is none."""
    return world.engines.by_ip.get(pod.get("status", {}).get("podIP", ""))
