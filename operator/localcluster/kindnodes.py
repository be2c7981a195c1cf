"""Nodes of a kind cluster as the API and the engine see them; waiting until they are usable."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from localcluster import devices, docker, processes
from localcluster.errors import LocalError, Progress, sparsely
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import NODES, Object
from pdserve.wire.names import ANNOTATION_UNHEALTHY_DEVICES

READY_TIMEOUT = 180.0
_POLL_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class KindNode:
    """One node as seen from outside."""

    name: str
    role: str
    state: str
    """Ready, NotReady, or stopped (its container does not run)."""
    ip: str = ""
    devices: int = 0
    unhealthy: str = ""


async def wait_ready(
    client: KubeClient,
    names: Collection[str],
    resource: str,
    count: int,
    progress: Progress,
) -> None:
    """Wait until every node is Ready, and every worker's devices count for the scheduler.

    kind answers when nodes have begun to join, so some register only after the devices were given:
    a node that lacks them gets them again.

    Raises:
        LocalError: something is missing after READY_TIMEOUT seconds; the message lists it.
    """
    deadline = processes.Deadline(READY_TIMEOUT)
    began = time.monotonic()
    still = sparsely(progress)
    while True:
        try:
            nodes = (await client.list(NODES)).items
            if any(lacks_devices(node, resource, count) for node in nodes):
                await devices.set_up(client, resource, count)
            waits = missing(names, nodes, resource, count)
        except KubeError as error:
            # Nodes that were just started may not serve the API yet.
            waits = [str(error)]
        if not waits:
            progress(f"all nodes are Ready ({time.monotonic() - began:.0f} s)")
            return
        if deadline.passed:
            raise LocalError(f"not ready after {READY_TIMEOUT:g} s: {'; '.join(waits)}")
        still(f"waiting: {'; '.join(waits)}")
        await asyncio.sleep(_POLL_SECONDS)


def missing(
    names: Collection[str], nodes: Sequence[Object], resource: str, count: int
) -> list[str]:
    """What is still to come, a line each. Pure."""
    known = {node["metadata"]["name"] for node in nodes}
    waits = [f"{name} has not registered" for name in sorted(set(names) - known)]
    return waits + [
        f"{node['metadata']['name']} {why}"
        for node in nodes
        if (why := _not_yet(node, resource, count))
    ]


def _not_yet(node: Object, resource: str, count: int) -> str:
    if not _is_ready(node):
        return "is not Ready"
    return f"has no {resource} yet" if lacks_devices(node, resource, count) else ""


def lacks_devices(node: Object, resource: str, count: int) -> bool:
    """True for a worker that is to have devices and shows none."""
    return devices.is_worker(node) and devices.lacks(node, resource, count)


def _is_ready(node: Object) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def seen_node(container: docker.NodeContainer, node: Object | None, resource: str) -> KindNode:
    """A node by its container and its object."""
    if node is None:
        return KindNode(container.name, container.role, "not registered")
    status = node["status"]
    state = "Ready" if _is_ready(node) else "NotReady"
    addresses = {a["type"]: a["address"] for a in status.get("addresses") or ()}
    annotations = node["metadata"].get("annotations") or {}
    return KindNode(
        name=container.name,
        role=container.role,
        state=state if container.running else "stopped",
        ip=addresses.get("InternalIP", ""),
        devices=int((status.get("allocatable") or {}).get(resource, 0)),
        unhealthy=annotations.get(ANNOTATION_UNHEALTHY_DEVICES, ""),
    )
