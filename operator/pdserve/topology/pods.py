"""One Kubernetes Pod as the operator reads it, made once when it enters the cache. Pure.

Whatever decides about pods reads these fields, never the object. Of pods that are not the
operator's and have no devices only what they take of their nodes is kept: there are a hundred of
them for each of ours.
Neighbours: `requests` counts what a pod takes, `containers` reads what the kubelet reports.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from sys import intern
from typing import Final

from pdserve.terms.json import JsonMap, JsonObject
from pdserve.terms.raw import name_of, part, parts, text
from pdserve.terms.times import timestamp
from pdserve.topology.containers import ContainerView, container_view, has_run
from pdserve.topology.requests import TERMINAL_PHASES, is_extended, requested
from pdserve.wire import names
from pdserve.wire.pin import pinned_node

ENGINE_CONTAINER: Final = "engine"
DOWNLOAD_CONTAINER: Final = "pdserve-model"
"""The init container that downloads the weights."""
_NO_CONTAINER: Final = ContainerView()
_LABELS: Final = frozenset(
    {names.LABEL_SERVICE, names.LABEL_SCENARIO, names.LABEL_GROUP_INDEX, names.LABEL_ROLE}
    | {names.LABEL_MEMBER, names.LABEL_REVISION, names.LABEL_SCALE_UNIT}
    | {names.LABEL_COMPONENT, names.LABEL_MANAGED_BY}
)
_ANNOTATIONS: Final = frozenset(
    {
        names.ANNOTATION_DRAIN,
        names.ANNOTATION_REPLACES,
        names.ANNOTATION_MEMBERS,
        names.ANNOTATION_FLIPS,
        names.ANNOTATION_FLIP_TO,
    }
    | {names.ANNOTATION_LEADER, names.ANNOTATION_CONTROL, names.ANNOTATION_CREDENTIALS}
    | {names.ANNOTATION_LEADER_ADDRESS}
    | {names.ANNOTATION_NETWORK_STATUS}
)


@dataclass(frozen=True, slots=True)
class PodCondition:
    """A condition of a pod."""

    status: str = ""
    """"" where it was never reported."""
    reason: str = ""
    message: str = ""
    changed: float | None = None
    """When the status changed last, by the clock of who wrote it."""

    @property
    def true(self) -> bool:
        """Whether the condition holds."""
        return self.status == "True"


UNTOLD: Final = PodCondition()
_NOTHING: Final[Mapping[str, int]] = {}
_NO_TEXTS: Final[Mapping[str, str]] = {}


@dataclass(frozen=True, slots=True)
class PodOwner:
    """The controller that an owner reference names. Any user may write one."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class PodView:
    """See the module. Times: seconds since the epoch, by the clocks of those who wrote them."""

    name: str
    namespace: str = ""
    uid: str = ""
    node: str = ""
    """Where it is bound; "" while it is not."""
    requested: Mapping[str, int] = field(default_factory=lambda: _NOTHING)
    """What it asks for, as `requests` counts it, whether or not it still takes it."""
    requested_devices: Mapping[str, int] = field(default_factory=lambda: _NOTHING)
    """The extended resources among it."""
    pinned: str | None = None
    """The one node that its required affinity names."""
    phase: str = ""
    owner: PodOwner | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: _NO_TEXTS)
    """Those that the operator writes."""
    annotations: Mapping[str, str] = field(default_factory=lambda: _NO_TEXTS)
    """Those that the operator reads."""
    created: float = 0.0
    deleting: bool = False
    reason: str = ""
    message: str = ""
    ip: str = ""
    ready: PodCondition = UNTOLD
    scheduled: PodCondition = UNTOLD
    linked: PodCondition = UNTOLD
    containers: tuple[ContainerView, ...] = ()
    init_containers: tuple[ContainerView, ...] = ()
    ever_ran: bool = False
    """A container of it was started once, init containers included."""
    derived: dict[Hashable, object] = field(default_factory=dict, compare=False, repr=False)
    """What readers worked out from this version of the pod, by reader."""

    @property
    def ours(self) -> bool:
        """It carries the operator's label. Any user may write it."""
        return self.labels.get(names.LABEL_MANAGED_BY) == names.FIELD_MANAGER

    @property
    def place(self) -> str:
        """Its node, or the one that it must run on; "" where neither is known."""
        return self.node or self.pinned or ""

    @property
    def takes(self) -> Mapping[str, int]:
        """What it takes on its node; nothing once it has ended."""
        return _NOTHING if self.phase in TERMINAL_PHASES else self.requested

    @property
    def devices(self) -> Mapping[str, int]:
        """Extended resources that it takes on its node; none once it has ended."""
        return _NOTHING if self.phase in TERMINAL_PHASES else self.requested_devices

    @property
    def engine(self) -> ContainerView:
        """The engine's container: the one of that name, else the first; empty before it exists."""
        for container in self.containers:
            if container.name == ENGINE_CONTAINER:
                return container
        return self.containers[0] if self.containers else _NO_CONTAINER

    @property
    def download(self) -> ContainerView:
        """The init container that downloads its weights; empty where none does."""
        return next(
            (c for c in self.init_containers if c.name == DOWNLOAD_CONTAINER), _NO_CONTAINER
        )

    @property
    def device_ids(self) -> frozenset[int] | None:
        """Ids of the devices that its engine was given; None if not reported."""
        devices = self.engine.devices
        if not any(is_extended(d.resource) for d in devices):
            return None
        numbers = (re.search(r"[0-9]{1,9}$", d.id) for d in devices)
        return frozenset(int(n.group()) for n in numbers if n is not None)

    @property
    def reference(self) -> JsonObject:
        """The object's kind and identity, to write an Event about it."""
        meta = {"name": self.name, "namespace": self.namespace, "uid": self.uid}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": meta}


def pod_view(pod: JsonMap) -> PodView:
    """Read a Pod in full.

    Raises:
        ObjectError: it has no name, or a part of it is no object or list.
    """
    meta, spec, status = part(pod, "metadata"), part(pod, "spec"), part(pod, "status")
    amounts, devices = _amounts(tuple(requested(pod).items()))
    conditions = _conditions(status)
    return PodView(
        name=name_of(meta),
        namespace=intern(text(meta, "namespace")),
        uid=text(meta, "uid"),
        node=intern(text(spec, "nodeName")),
        requested=amounts,
        requested_devices=devices,
        pinned=pinned_node(pod),
        phase=intern(text(status, "phase")),
        owner=_owner(meta),
        labels=_labels(meta),
        annotations=_annotations(meta),
        created=timestamp(meta.get("creationTimestamp")) or 0.0,
        deleting=bool(meta.get("deletionTimestamp")),
        reason=text(status, "reason"),
        message=text(status, "message"),
        ip=text(status, "podIP"),
        ready=conditions.get("Ready", UNTOLD),
        scheduled=conditions.get("PodScheduled", UNTOLD),
        linked=conditions.get(names.CONDITION_LINKED, UNTOLD),
        containers=tuple(map(container_view, parts(status, "containerStatuses"))),
        init_containers=tuple(map(container_view, parts(status, "initContainerStatuses"))),
        ever_ran=any(
            has_run(container)
            for kind in ("initContainerStatuses", "containerStatuses")
            for container in parts(status, kind)
        ),
    )


def kept_pod(pod: JsonMap) -> PodView | None:
    """What a cache keeps of a Pod; None for one that takes nothing of a node.

    Raises:
        ObjectError: as `pod_view`.
    """
    meta, spec, status = part(pod, "metadata"), part(pod, "spec"), part(pod, "status")
    if part(meta, "labels").get(names.LABEL_MANAGED_BY) == names.FIELD_MANAGER:
        return pod_view(pod)
    if text(status, "phase") in TERMINAL_PHASES:
        return None
    amounts, devices = _amounts(tuple(requested(pod).items()))
    if devices:
        return pod_view(pod)
    node = text(spec, "nodeName")
    if not node or not amounts:
        return None
    return PodView(
        name=name_of(meta),
        namespace=intern(text(meta, "namespace")),
        uid=text(meta, "uid"),
        node=intern(node),
        requested=amounts,
    )


@functools.lru_cache(maxsize=4096)
def _amounts(
    requests: tuple[tuple[str, int], ...],
) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """All amounts, and the devices among them; one object for all pods that take the same."""
    devices = {r: n for r, n in requests if is_extended(r)}
    return dict(requests), devices or _NOTHING


def _owner(meta: JsonMap) -> PodOwner | None:
    for reference in parts(meta, "ownerReferences"):
        if reference.get("controller"):
            return _shared_owner(*(text(reference, key) for key in ("kind", "name", "uid")))
    return None


_shared_owner = functools.lru_cache(maxsize=4096)(PodOwner)
_shared_condition = functools.lru_cache(maxsize=4096)(PodCondition)


def _labels(meta: JsonMap) -> Mapping[str, str]:
    """Texts alone: what is none would not be a label."""
    return _texts(
        tuple(
            (key, value)
            for key, value in sorted(part(meta, "labels").items())
            if isinstance(value, str) and (key in _LABELS or key.startswith(names.TOPOLOGY_PREFIX))
        )
    )


@functools.lru_cache(maxsize=4096)
def _texts(found: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    return {intern(key): intern(value) for key, value in found}


def _annotations(meta: JsonMap) -> Mapping[str, str]:
    found = part(meta, "annotations")
    kept = {key: value for key in sorted(_ANNOTATIONS) if isinstance(value := found.get(key), str)}
    return kept or _NO_TEXTS


def _conditions(status: JsonMap) -> Mapping[str, PodCondition]:
    """By type; of two with one type, the first counts."""
    found: dict[str, PodCondition] = {}
    for entry in parts(status, "conditions"):
        told = (text(entry, key) for key in ("status", "reason", "message"))
        condition = _shared_condition(*told, timestamp(entry.get("lastTransitionTime")))
        found.setdefault(text(entry, "type"), condition)
    return found
