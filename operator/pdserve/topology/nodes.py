"""One Kubernetes Node as placement sees it: devices, who uses them, may new pods go there.

Reads raw JSON objects, as the cache holds them, and nothing else: the layer above decides which
pods to hand in. Devices are extended resources (names with a domain that is not Kubernetes' own);
CPU, memory, host ports and the rest count as the scheduler counts them (`requests`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from pdserve.frozen import remembered
from pdserve.terms import Device
from pdserve.terms.devices import is_ip
from pdserve.terms.json import JsonMap
from pdserve.terms.quantity import QuantityError, quantity
from pdserve.terms.shown import shown
from pdserve.topology.obstacle import Obstacle, ObstacleKind
from pdserve.topology.requests import UNSTATED, is_extended, offered, pod_requests
from pdserve.wire import names
from pdserve.wire.bounds import Fields, WireError, integer, items, parse_json
from pdserve.wire.peers import MAX_DEVICE, device_of
from pdserve.wire.pin import pinned_node

MAX_DEVICES = 1024
"""Devices that one node's annotations may name."""

_TOLD = 4
"""Odd addresses of one node that are named."""
_OF_STATE = "node.kubernetes.io/"
"""Of the keys of taints that Kubernetes itself sets by a node's state."""


@dataclass(frozen=True, slots=True, order=True)
class Taint:
    """A Node's taint; `PreferNoSchedule` ones are dropped when a Node is read."""

    key: str
    value: str
    effect: str


@dataclass(frozen=True, slots=True, order=True)
class Toleration:
    """A pod's toleration. An empty `key` tolerates every key, an empty `effect` every effect."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""

    def tolerates(self, taint: Taint) -> bool:
        """True when this toleration covers `taint` (Kubernetes' own rules)."""
        if self.effect and self.effect != taint.effect:
            return False
        if self.key and self.key != taint.key:
            return False
        if self.operator == "Equal":
            return self.value == taint.value
        return self.operator == "Exists"

    @staticmethod
    def from_json(value: JsonMap) -> Toleration:
        """Read one entry of a pod's `spec.tolerations`."""
        return Toleration(
            str(value.get("key") or ""),
            str(value.get("operator") or "Equal"),
            str(value.get("value") or ""),
            str(value.get("effect") or ""),
        )


@dataclass(frozen=True, slots=True)
class Reservation:
    """An amount promised to a pod that is not bound yet (its pin names the node)."""

    pod: str
    node: str
    resource: str
    devices: int
    """How much of the resource, in the units of `requests`."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """One Node. Device counts are per extended resource name."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    capacity: Mapping[str, int] = field(default_factory=dict)
    allocatable: Mapping[str, int] = field(default_factory=dict)
    used: Mapping[str, int] = field(default_factory=dict)
    """What its pods take: devices, and all else that `requests` counts."""
    offers: Mapping[str, int] = field(default_factory=dict)
    """Allocatable amounts of what is no extended resource, in the units of `requests`."""
    ready: bool = True
    unschedulable: bool = False
    taints: tuple[Taint, ...] = ()
    devices: tuple[Device, ...] = ()
    """Accelerators with their RoCE addresses, in device-id order."""
    unhealthy: frozenset[int] = frozenset()
    """Device ids that must not be used."""
    problems: tuple[str, ...] = ()
    """What could not be read, e.g. a malformed annotation."""

    def free(self, resource: str) -> int:
        """Devices a new pod could get: allocatable, less used, less unhealthy ones.

        A device plugin may already have taken an unhealthy device out of `allocatable`; only
        what it has not taken out is subtracted. The annotation names no resource, so it counts
        against each one (never too many free).
        """
        have = self.allocatable.get(resource, 0)
        withdrawn = max(0, self.capacity.get(resource, have) - have)
        sick = max(0, len(self.unhealthy) - withdrawn)
        return max(0, have - sick - self.used.get(resource, 0))

    def left(self, resource: str) -> int | None:
        """What is not used of a resource that an instance takes beside its devices.

        At most 0 where the node has none of it; None where nothing is known of it.
        """
        offered = self.allocatable if is_extended(resource) else self.offers
        have = offered.get(resource)
        if have is None:
            if resource in UNSTATED:
                return None
            have = 0
        return have - self.used.get(resource, 0)

    @property
    def devices_well(self) -> bool:
        """No device is unhealthy, by the annotation or because its plugin took it back."""
        taken_back = any(self.allocatable.get(r, 0) < count for r, count in self.capacity.items())
        return not self.unhealthy and not taken_back

    def blocked(self, tolerations: Iterable[Toleration] = ()) -> Obstacle | None:
        """Why no new pod may go here, or None when one may."""
        if not self.ready:
            return Obstacle("not-ready", "NotReady")
        if self.unschedulable:
            return Obstacle("unschedulable", "Unschedulable")
        accepted = tuple(tolerations)
        for taint in self.taints:
            if not any(t.tolerates(taint) for t in accepted):
                kind: ObstacleKind = "state-taint" if taint.key.startswith(_OF_STATE) else "taint"
                return Obstacle(kind, f"Taint {taint.key}:{taint.effect}")
        return None


def node_view(
    node: JsonMap,
    pods: Iterable[JsonMap] = (),
    used: Mapping[str, int] | None = None,
) -> NodeView:
    """Read a Node and the pods bound to it (terminal ones are ignored), or what they take (`used`).

    A malformed annotation never raises: it is reported in `problems`, and what it would have
    said is left out.
    """
    taken = dict(used or {})
    for pod in pods:
        for resource, count in pod_requests(pod).items():
            taken[resource] = taken.get(resource, 0) + count
    return replace(_unused(node), used=taken) if taken else _unused(node)


@remembered
def _unused(node: JsonMap) -> NodeView:
    meta, spec, status = node.get("metadata", {}), node.get("spec", {}), node.get("status", {})
    problems: list[str] = []
    annotations = meta.get("annotations") or {}
    return NodeView(
        name=str(meta["name"]),
        labels=_labels(meta.get("labels"), problems),
        capacity=_extended(status.get("capacity"), problems),
        allocatable=_extended(status.get("allocatable"), problems),
        offers=_plain(status.get("allocatable"), problems),
        ready=_is_ready(status),
        unschedulable=bool(spec.get("unschedulable", False)),
        taints=tuple(
            sorted(
                Taint(str(t["key"]), str(t.get("value") or ""), str(t["effect"]))
                for t in spec.get("taints") or ()
                if t.get("effect") in ("NoSchedule", "NoExecute")
            )
        ),
        devices=_roce_devices(annotations.get(names.ANNOTATION_ROCE_DEVICES), problems),
        unhealthy=_unhealthy(annotations.get(names.ANNOTATION_UNHEALTHY_DEVICES), problems),
        problems=tuple(problems),
    )


def reservation_of(pod: JsonMap) -> tuple[Reservation, ...]:
    """What a pinned pod that is not bound yet reserves; nothing for any other pod."""
    if pod.get("spec", {}).get("nodeName"):
        return ()
    node = pinned_node(pod)
    if node is None:
        return ()
    name = str(pod["metadata"]["name"])
    return tuple(Reservation(name, node, r, n) for r, n in pod_requests(pod).items())


def _is_ready(status: JsonMap) -> bool:
    for condition in status.get("conditions") or ():
        if condition.get("type") == "Ready":
            return bool(condition.get("status") == "True")
    return False


def _labels(labels: JsonMap | None, problems: list[str]) -> dict[str, str]:
    """Labels whose values are text. Others are reported and count as missing: a tree's parts are
    made of these values, and one node's must not keep the tree from being built.
    """
    found = {key: value for key, value in (labels or {}).items() if isinstance(value, str)}
    problems += [
        f"label {key}: {shown(value)} is not text"
        for key, value in sorted((labels or {}).items())
        if key not in found
    ]
    return found


def _extended(quantities: JsonMap | None, problems: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for resource, value in sorted((quantities or {}).items()):
        if not is_extended(resource):
            continue
        try:
            amount = quantity(value)
        except QuantityError as error:
            problems.append(f"{resource}: {error}")
            continue
        found[resource] = max(0, math.floor(amount))
        if amount != found[resource]:
            problems.append(f"{resource}: {shown(value)} is not a whole number of devices")
    return found


def _plain(quantities: JsonMap | None, problems: list[str]) -> dict[str, int]:
    """CPU, memory and the like; what cannot be read is reported and counts as not stated."""
    found: dict[str, int] = {}
    for resource, value in (quantities or {}).items():
        if not is_extended(resource):
            try:
                found[resource] = offered(resource, value)
            except QuantityError as error:
                problems.append(f"{resource}: {error}")
    return found


def _roce_devices(text: str | None, problems: list[str]) -> tuple[Device, ...]:
    if not text:
        return ()
    try:
        found = items(parse_json(text), "list", most=MAX_DEVICES)
        entries = [device_of(Fields(d, f"list[{i}]")) for i, d in enumerate(found)]
    except WireError as error:
        problems.append(
            f"annotation {names.ANNOTATION_ROCE_DEVICES}: want a JSON list like "
            f'[{{"id": 0, "ip": "10.0.0.1"}}], got {shown(text)}: {error}'
        )
        return ()
    odd = [d for d in entries if d.ip is not None and not is_ip(d.ip)]
    if odd:
        told = ", ".join(f"{shown(d.ip)} of device {d.id}" for d in odd[:_TOLD])
        problems.append(f"annotation {names.ANNOTATION_ROCE_DEVICES}: no IP address: {told}")
    known = (d if d.ip is None or is_ip(d.ip) else replace(d, ip=None) for d in entries)
    return tuple(sorted(known, key=lambda d: d.id))


def _unhealthy(text: str | None, problems: list[str]) -> frozenset[int]:
    if not text or not text.strip():
        return frozenset()
    try:
        ids = items(text.split(","), "list", most=MAX_DEVICES)
        return frozenset(integer(int(str(part)[:20]), "id", high=MAX_DEVICE) for part in ids)
    except ValueError:
        problems.append(
            f"annotation {names.ANNOTATION_UNHEALTHY_DEVICES}: want comma-separated device ids "
            f'like "0,3", got {shown(text)}'
        )
        return frozenset()
