"""Which devices an instance's pod holds, and the addresses at which its peers reach them.

An address of the pod's own comes first: a secondary network (one per rail, attached by the pod's
template) gives the pod interfaces whose addresses its processes can listen at. Without one it is
the address in the node's annotation. Processes of a pod can listen at that one with host network
only; engines whose devices have network interfaces of their own need it in any case
(docs/decisions/027).
"""

from __future__ import annotations

import ipaddress
from itertools import count
from typing import Final

from pdserve.terms import Device
from pdserve.topology.nodes import NodeView
from pdserve.topology.pods import PodView
from pdserve.wire import names
from pdserve.wire.bounds import Fields, items, parse_json

MAX_NETWORKS: Final = 64
"""Networks of one pod that are read."""


def devices_of(pod: PodView, node: NodeView | None) -> tuple[Device, ...]:
    """Devices of a pod, by id, with their addresses; empty where nothing is known of them."""
    own = pod_addresses(pod)
    if own:
        ids = pod.device_ids or ()
        numbers = sorted(ids) if len(ids) == len(own) else count()
        return tuple(Device(number, ip) for number, ip in zip(numbers, own, strict=False))
    return () if node is None else _of_the_node(pod, node)


def pod_addresses(pod: PodView) -> tuple[str, ...]:
    """First address of each secondary network of a pod, in the order of its networks.

    Empty without such networks, or where the annotation is not what the Network Plumbing Working
    Group's specification says (section 4.1.4, "Network Status Annotation").
    """
    text = pod.annotations.get(names.ANNOTATION_NETWORK_STATUS)
    if not text:
        return ()
    try:
        listed = items(parse_json(text), "list", most=MAX_NETWORKS)
        ips = [Fields(n, "network").texts("ips", []) for n in listed if not _is_default(n)]
        return tuple(str(ipaddress.ip_address(of_one[0])) for of_one in ips if of_one)
    except ValueError:  # WireError is one
        return ()


def _is_default(network: object) -> bool:
    return isinstance(network, dict) and network.get("default") is True


def _of_the_node(pod: PodView, node: NodeView) -> tuple[Device, ...]:
    """The node's devices that this pod holds: those told, or all if it holds all, else unknown."""
    ids = pod.device_ids
    if ids is not None:
        known = {d.id: d for d in node.devices}
        return tuple(known.get(i, Device(i)) for i in sorted(ids))
    held = pod.devices
    whole = any(amount >= node.capacity.get(r, 1 << 30) for r, amount in held.items())
    return node.devices if whole else ()
