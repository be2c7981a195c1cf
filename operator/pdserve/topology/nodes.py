"""One Kubernetes Node as placement sees it: devices, who uses them, may new pods go there.

Reads raw JSON objects when they enter the cache, and nothing else: the layer above decides which
pods to hand in. Devices are extended resources (names with a domain that is not Kubernetes' own);
CPU, memory, host ports and the rest count as the scheduler counts them (`requests`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from pdserve.terms import Device
from pdserve.terms.devices import is_ip
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.terms.quantity import QuantityError, quantity
from pdserve.terms.raw import name_of, part, parts, text
from pdserve.terms.shown import shown
from pdserve.terms.times import timestamp
from pdserve.topology.notices import OUT_OF_SERVICE, Signal, signals_of
from pdserve.topology.obstacle import Obstacle, ObstacleKind
from pdserve.topology.pods import PodView
from pdserve.topology.requests import UNSTATED, is_extended, offered
from pdserve.wire import names
from pdserve.wire.bounds import Fields, WireError, integer, items, parse_json
from pdserve.wire.peers import MAX_DEVICE, device_of

MAX_DEVICES = 1024
"""Devices that one node's annotations may name."""

_BINDING = ("NoSchedule", "NoExecute")
"""Effects of taints that keep pods away."""
_TOLD = 4
"""Odd addresses of one node that are named."""
_OF_STATE = "node.kubernetes.io/"
"""Of the keys of taints that Kubernetes itself sets by a node's state."""


@dataclass(frozen=True, slots=True, order=True)
class Taint:
    """A Node's taint."""

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
    soft_taints: tuple[Taint, ...] = ()
    """Those that keep no pod away."""
    devices: tuple[Device, ...] = ()
    """Accelerators with their RoCE addresses, in device-id order."""
    unhealthy: frozenset[int] = frozenset()
    """Device ids that must not be used."""
    problems: tuple[str, ...] = ()
    """What could not be read, e.g. a malformed annotation."""
    uid: str = ""
    signals: tuple[Signal, ...] = ()
    """Taints and conditions that may mean something to a RoCEDomain."""
    ends_at: float | None = None
    """When it ends, as its annotation says: seconds since the epoch."""
    ready_changed: float | None = None
    """When `ready` changed last: seconds since the epoch, by the clock of who wrote it."""

    @property
    def out_of_service(self) -> bool:
        """A person says by a taint that it is shut down for sure."""
        return any(t.key == OUT_OF_SERVICE for t in self.taints)

    @property
    def reference(self) -> JsonObject:
        """The object's kind and identity, to write an Event about it."""
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "uid": self.uid},
        }

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
    pods: Iterable[PodView] = (),
) -> NodeView:
    """Read a Node and the pods bound to it (terminal ones are ignored).

    A malformed annotation never raises: it is reported in `problems`, and what it would have
    said is left out.

    Raises:
        ObjectError: it has no name, or a part of it is no object or list.
    """
    taken: dict[str, int] = {}
    for pod in pods:
        for resource, count in pod.takes.items():
            taken[resource] = taken.get(resource, 0) + count
    return replace(_unused(node), used=taken) if taken else _unused(node)


def _unused(node: JsonMap) -> NodeView:
    meta, spec, status = part(node, "metadata"), part(node, "spec"), part(node, "status")
    problems: list[str] = []
    annotations = part(meta, "annotations")
    taints = sorted(
        Taint(text(t, "key"), text(t, "value"), text(t, "effect")) for t in parts(spec, "taints")
    )
    told = next((c for c in parts(status, "conditions") if c.get("type") == "Ready"), {})
    return NodeView(
        name=name_of(meta),
        labels=_labels(part(meta, "labels"), problems),
        capacity=_extended(part(status, "capacity"), problems),
        allocatable=_extended(part(status, "allocatable"), problems),
        offers=_plain(part(status, "allocatable"), problems),
        ready=told.get("status") == "True",
        unschedulable=bool(spec.get("unschedulable", False)),
        taints=tuple(t for t in taints if t.effect in _BINDING),
        soft_taints=tuple(t for t in taints if t.effect not in _BINDING),
        devices=_roce_devices(text(annotations, names.ANNOTATION_ROCE_DEVICES), problems),
        unhealthy=_unhealthy(text(annotations, names.ANNOTATION_UNHEALTHY_DEVICES), problems),
        uid=text(meta, "uid"),
        signals=signals_of(parts(spec, "taints"), parts(status, "conditions")),
        ends_at=_ends_at(annotations, problems),
        problems=tuple(problems),
        ready_changed=timestamp(told.get("lastTransitionTime")),
    )


def reservation_of(pod: PodView) -> tuple[Reservation, ...]:
    """What a pinned pod that is not bound yet reserves; nothing for any other pod."""
    if pod.node or pod.pinned is None:
        return ()
    return tuple(Reservation(pod.name, pod.pinned, r, n) for r, n in pod.takes.items())


def _labels(labels: JsonMap, problems: list[str]) -> dict[str, str]:
    """Labels whose values are text. Others are reported and count as missing: a tree's parts are
    made of these values, and one node's must not keep the tree from being built.
    """
    found = {key: value for key, value in labels.items() if isinstance(value, str)}
    problems += [
        f"label {key}: {shown(value)} is not text"
        for key, value in sorted(labels.items())
        if key not in found
    ]
    return found


def _extended(quantities: JsonMap, problems: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for resource, value in sorted(quantities.items()):
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


def _plain(quantities: JsonMap, problems: list[str]) -> dict[str, int]:
    """CPU, memory and the like; what cannot be read is reported and counts as not stated."""
    found: dict[str, int] = {}
    for resource, value in quantities.items():
        if not is_extended(resource):
            try:
                found[resource] = offered(resource, value)
            except QuantityError as error:
                problems.append(f"{resource}: {error}")
    return found


def _roce_devices(told: str, problems: list[str]) -> tuple[Device, ...]:
    if not told:
        return ()
    try:
        found = items(parse_json(told), "list", most=MAX_DEVICES)
        entries = [device_of(Fields(d, f"list[{i}]")) for i, d in enumerate(found)]
    except WireError as error:
        problems.append(
            f"annotation {names.ANNOTATION_ROCE_DEVICES}: want a JSON list like "
            f'[{{"id": 0, "ip": "10.0.0.1"}}], got {shown(told)}: {error}'
        )
        return ()
    odd = [d for d in entries if d.ip is not None and not is_ip(d.ip)]
    if odd:
        told = ", ".join(f"{shown(d.ip)} of device {d.id}" for d in odd[:_TOLD])
        problems.append(f"annotation {names.ANNOTATION_ROCE_DEVICES}: no IP address: {told}")
    known = (d if d.ip is None or is_ip(d.ip) else replace(d, ip=None) for d in entries)
    return tuple(sorted(known, key=lambda d: d.id))


def _ends_at(annotations: JsonMap, problems: list[str]) -> float | None:
    told = annotations.get(names.ANNOTATION_ENDS_AT)
    found = timestamp(told)
    if told is not None and found is None:
        problems.append(
            f"annotation {names.ANNOTATION_ENDS_AT}: want a time like 2026-01-31T12:00:00Z, "
            f"got {shown(told)}"
        )
    return found


def _unhealthy(told: str, problems: list[str]) -> frozenset[int]:
    if not told or not told.strip():
        return frozenset()
    try:
        ids = items(told.split(","), "list", most=MAX_DEVICES)
        return frozenset(integer(int(str(part)[:20]), "id", high=MAX_DEVICE) for part in ids)
    except ValueError:
        problems.append(
            f"annotation {names.ANNOTATION_UNHEALTHY_DEVICES}: want comma-separated device ids "
            f'like "0,3", got {shown(told)}'
        )
        return frozenset()
