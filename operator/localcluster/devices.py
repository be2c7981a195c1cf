"""Gives the workers of any cluster fake accelerators, to try pdserve without real ones.

A fake device is a number: capacity of an extended resource in the node's status, which scheduler
and kubelet count as they count real devices, and an address in the annotation
`pdserve.io/roce-devices`, which a fabric agent would write. Containers get no device from it.

A node with real devices (it has the resource, but not our mark) is left alone. Setting up again
changes nothing that is right and restores what was lost: a kubelet keeps such capacity over a
restart of its own or its machine's, but not with a new directory, and not over a deletion of its
Node.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from localcluster.config import LABEL_DEVICES, MAX_DEVICES
from localcluster.errors import LocalError
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import NODES, Object
from pdserve.terms.json import JsonObject
from pdserve.wire.names import ANNOTATION_ROCE_DEVICES, ANNOTATION_UNHEALTHY_DEVICES

ANNOTATION_FAKE = "local.pdserve.io/fake-devices"
"""On a Node: the extended resource whose capacity was made here; another one takes its place."""

_NETWORK = ipaddress.IPv4Network("198.18.0.0/15")
"""Set aside for benchmarks (RFC 2544), so no real network routes it: 256 addresses a node."""
_FIRST_DEVICE = 2
_PER_NODE = 256
_CONTROL_PLANE = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")
_HIDDEN_BY = ("NoSchedule", "NoExecute")


@dataclass(frozen=True, slots=True)
class NodeDevices:
    """What one worker is to have. `own` says that its devices are real, and stay as they are."""

    node: str
    resource: str
    devices: int
    block: int = 0
    """Which 256 addresses of `198.18.0.0/15` are this node's."""
    own: bool = False

    @property
    def annotation(self) -> str:
        """Value of `pdserve.io/roce-devices`."""
        first = _NETWORK.network_address + self.block * _PER_NODE + _FIRST_DEVICE
        return json.dumps([{"id": i, "ip": str(first + i)} for i in range(self.devices)])


def plan_devices(nodes: Sequence[Object], resource: str, devices: int) -> list[NodeDevices]:
    """What every worker of `nodes` is to have, by name. Pure; the same again when carried out.

    `devices` each, where the node's label `local.pdserve.io/devices` does not say otherwise.

    Raises:
        LocalError: no workers, more than the addresses suffice for, or a label that is no number.
    """
    workers = sorted((n for n in nodes if is_worker(n)), key=_name)
    if not workers:
        raise LocalError(
            "no workers: every node is a control plane that takes no pods "
            "(a taint node-role.kubernetes.io/control-plane)"
        )
    taken = {_block(node) for node in workers} - {None}
    free = (block for block in range(_NETWORK.num_addresses // _PER_NODE) if block not in taken)
    plan = []
    for node in workers:
        if has_real_devices(node, resource):
            capacity = int(node["status"]["capacity"][resource])
            plan.append(NodeDevices(_name(node), resource, capacity, own=True))
            continue
        block = _block(node)
        if block is None and (block := next(free, None)) is None:
            raise LocalError(f"more than {_NETWORK.num_addresses // _PER_NODE} workers")
        plan.append(NodeDevices(_name(node), resource, _count(node, devices), block))
    return plan


def is_worker(node: Object) -> bool:
    """True unless it is a control plane that ordinary pods are kept off."""
    taints = node.get("spec", {}).get("taints") or ()
    return not any(t["key"] in _CONTROL_PLANE and t["effect"] in _HIDDEN_BY for t in taints)


def has_real_devices(node: Object, resource: str) -> bool:
    """True when a device plugin (or another stand-in for one) provides the resource."""
    capacity = (node.get("status") or {}).get("capacity") or {}
    return (
        int(capacity.get(resource, 0)) > 0 and _annotations(node).get(ANNOTATION_FAKE) != resource
    )


def lacks(node: Object, resource: str, devices: int) -> bool:
    """True when a worker is to have devices and shows none: new, or its kubelet is."""
    if has_real_devices(node, resource) or not _count(node, devices):
        return False
    status = node.get("status") or {}
    return any(not int((status.get(field) or {}).get(resource, 0)) for field in _FIELDS)


async def set_up(client: KubeClient, resource: str, devices: int) -> list[NodeDevices]:
    """Give every worker its devices, all workers at once; returns what each has now.

    Raises:
        LocalError: see `plan_devices`.
        KubeError: the API server refused.
    """
    nodes = (await client.list(NODES)).items
    plan = plan_devices(nodes, resource, devices)
    by_name = {_name(node): node for node in nodes}
    await asyncio.gather(*(_give(client, by_name[want.node], want) for want in plan))
    return plan


async def set_health(
    client: KubeClient, node: str, unhealthy: Sequence[int] = (), healthy: Sequence[int] = ()
) -> frozenset[int]:
    """Mark devices of a node in `pdserve.io/unhealthy-devices`; returns all that are marked now.

    Raises:
        LocalError: the cluster has no such node, or the node no such device.
        KubeError: the API server refused.
    """
    try:
        found = await client.get(NODES, node)
    except KubeError as error:
        if error.is_not_found:
            raise LocalError(f"node: the cluster has no {node!r}") from error
        raise
    annotations = _annotations(found)
    known = {int(d["id"]) for d in json.loads(annotations.get(ANNOTATION_ROCE_DEVICES) or "[]")}
    for device in (*unhealthy, *healthy):
        if device not in known:
            raise LocalError(f"device {device}: {node} has {_ids(known) or 'none'}")
    text = annotations.get(ANNOTATION_UNHEALTHY_DEVICES) or ""
    before = {int(part) for part in text.split(",") if part.strip()}
    after = frozenset((before | set(unhealthy)) - set(healthy))
    if after != before:
        await _annotate(client, found, {ANNOTATION_UNHEALTHY_DEVICES: _ids(after) or None})
    return after


async def _give(client: KubeClient, node: Object, want: NodeDevices) -> None:
    if want.own:
        return
    annotations = {ANNOTATION_FAKE: want.resource, ANNOTATION_ROCE_DEVICES: want.annotation}
    if any(_annotations(node).get(key) != value for key, value in annotations.items()):
        # The mark first: capacity without it would be taken for real devices ever after.
        await _annotate(client, node, annotations)
    amounts: dict[str, str | None] = {want.resource: str(want.devices)}
    before = _annotations(node).get(ANNOTATION_FAKE, want.resource)
    if before != want.resource:
        amounts[before] = None
    status = node.get("status") or {}
    shown = [status.get(field) or {} for field in _FIELDS]
    if any(has.get(name) != amount for has in shown for name, amount in amounts.items()):
        await client.patch_status(NODES, want.node, dict.fromkeys(_FIELDS, amounts))


# A kubelet derives the second from the first, at its next report; until then we do.
_FIELDS = ("capacity", "allocatable")


async def _annotate(client: KubeClient, node: Object, values: Mapping[str, str | None]) -> None:
    existing = node["metadata"].get("annotations")
    operations: list[JsonObject] = []
    if existing is None:
        operations.append({"op": "add", "path": "/metadata/annotations", "value": {}})
    for key, value in values.items():
        path = "/metadata/annotations/" + key.replace("~", "~0").replace("/", "~1")
        if value is not None:
            operations.append({"op": "add", "path": path, "value": value})
        elif key in (existing or {}):
            operations.append({"op": "remove", "path": path})
    await client.patch_json(NODES, _name(node), operations, uid=node["metadata"].get("uid"))


def _count(node: Object, devices: int) -> int:
    text = (node["metadata"].get("labels") or {}).get(LABEL_DEVICES, str(devices))
    if not text.isdecimal() or int(text) > MAX_DEVICES:
        raise LocalError(
            f"node {_name(node)}: {text!r} devices, expected 0 to {MAX_DEVICES} "
            f"(--devices, or its label {LABEL_DEVICES})"
        )
    return int(text)


def _block(node: Object) -> int | None:
    """The addresses that its annotation already uses, if they are ours."""
    try:
        listed = json.loads(_annotations(node).get(ANNOTATION_ROCE_DEVICES) or "[]")
        address = ipaddress.IPv4Address(listed[0]["ip"])
    except (ValueError, LookupError, TypeError):
        return None
    if address not in _NETWORK:
        return None
    return (int(address) - int(_NETWORK.network_address)) // _PER_NODE


def _annotations(node: Object) -> Mapping[str, str]:
    return node["metadata"].get("annotations") or {}


def _name(node: Object) -> str:
    return str(node["metadata"]["name"])


def _ids(devices: frozenset[int] | set[int]) -> str:
    return ",".join(map(str, sorted(devices)))
