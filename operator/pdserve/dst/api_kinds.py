"""The kinds that the in-memory API model stores: what differs between them, and their history."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from pdserve.dst.api_fields import COMMON_KEYS, Keys
from pdserve.kube import resource as known
from pdserve.kube.resource import Object, ObjectKey, Resource
from pdserve.terms.json import JsonMap


@dataclass(frozen=True, slots=True)
class StoredKind:
    """How one kind behaves."""

    resource: Resource
    status: bool = False
    """Has the status subresource: other writes leave `status` alone, and it leaves others alone."""
    generation: bool = False
    """`metadata.generation` counts changes of anything but metadata and status."""
    lists: Keys = field(default_factory=dict)


_CONTAINER_LISTS: dict[tuple[str, ...], tuple[str, ...]] = {
    (*prefix, containers, *path): key
    for prefix in ((), ("template", "spec"))
    for containers in ("containers", "initContainers")
    for path, key in (
        ((), ("name",)),
        (("*", "env"), ("name",)),
        (("*", "ports"), ("containerPort", "protocol")),
        (("*", "volumeMounts"), ("mountPath",)),
    )
}
_POD_SPEC_LISTS: Keys = {("spec", *path): key for path, key in _CONTAINER_LISTS.items()}
_CONDITIONS: Keys = {("status", "conditions"): ("type",)}

BUILTIN = (
    StoredKind(known.PODS, status=True, generation=True, lists={**_POD_SPEC_LISTS, **_CONDITIONS}),
    StoredKind(known.NODES, status=True, lists=_CONDITIONS),
    StoredKind(
        known.DEPLOYMENTS,
        status=True,
        generation=True,
        lists={**_POD_SPEC_LISTS, **_CONDITIONS},
    ),
    StoredKind(known.SERVICES, status=True, lists={("spec", "ports"): ("port", "protocol")}),
    StoredKind(known.POD_DISRUPTION_BUDGETS, status=True, generation=True, lists=_CONDITIONS),
    *(
        StoredKind(resource)
        for resource in (
            known.CONFIGMAPS, known.CONTROLLER_REVISIONS, known.SECRETS, known.SERVICE_ACCOUNTS,
            known.NAMESPACES, known.EVENTS, known.LEASES, known.NETWORK_POLICIES, known.ROLES,
            known.ROLE_BINDINGS, known.PERSISTENT_VOLUME_CLAIMS, known.PERSISTENT_VOLUMES,
            known.STORAGE_CLASSES,
        )
    ),
)  # fmt: skip


def kind_of_crd(crd: JsonMap, version: str | None = None) -> StoredKind:
    """A `StoredKind` from a CustomResourceDefinition: scope, subresources, list types."""
    spec = crd["spec"]
    served = next(v for v in spec["versions"] if version is None or v["name"] == version)
    names = spec["names"]
    lists: dict[tuple[str, ...], tuple[str, ...]] = {}
    _list_types(served.get("schema", {}).get("openAPIV3Schema", {}), (), lists)
    return StoredKind(
        Resource(
            spec["group"], served["name"], names["plural"], names["kind"],
            namespaced=spec["scope"] == "Namespaced",
        ),
        status="status" in served.get("subresources", {}),
        generation=True,
        lists=lists,
    )  # fmt: skip


def _list_types(
    schema: JsonMap,
    at: tuple[str, ...],
    found: dict[tuple[str, ...], tuple[str, ...]],
) -> None:
    for name, child in schema.get("properties", {}).items():
        _list_types(child, (*at, name), found)
    if "items" in schema:
        kind = schema.get("x-kubernetes-list-type")
        if kind == "map":
            found[at] = tuple(schema["x-kubernetes-list-map-keys"])
        elif kind == "set":
            found[at] = ()
        _list_types(schema["items"], (*at, "*"), found)


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of a kind's history."""

    version: int
    type: str
    object: Object
    before: Object | None


class Store:
    """All objects of one kind, and their history since `compacted`."""

    def __init__(self, kind: StoredKind) -> None:
        self.kind = kind
        self.builtin = kind in BUILTIN
        self.keys: Keys = {**COMMON_KEYS, **kind.lists}
        self.objects: dict[ObjectKey, Object] = {}
        self.history: list[Change] = []
        self.compacted = 0
        """Watches from versions below this are refused."""
        self.version = 0
        """Of the newest change; 0 before the first."""
        self.last_lost = 0
        """Version of the newest change that was forgotten."""
        self.changed = asyncio.Event()

    def record(self, change: Change) -> None:
        """Append to the history and wake the watches."""
        self.history.append(change)
        self.version = change.version
        self.wake()

    def wake(self) -> None:
        """Let the watches look again."""
        self.changed.set()
        self.changed = asyncio.Event()

    def forget(self, version: int) -> None:
        """Drop the history so far; `version` is the server's now."""
        if self.history:
            self.last_lost = self.history[-1].version
        self.history.clear()
        self.compacted = version
