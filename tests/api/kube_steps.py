"""Requests to an API server, each with what it must answer: one table for model and real server.

A case is a list of steps on one namespace; `Session` remembers what each object last looked like,
so that a step can say what must be the same, or new. Run by `test_kube_conformance`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from pdserve.kube.client import KubeClient
from pdserve.kube.ownership import create_or_apply
from pdserve.kube.request import KubeTransport
from pdserve.kube.resource import (
    CONFIGMAPS,
    PODS,
    Object,
    Resource,
)  # fmt: skip

SAME, NEW, PRESENT, ABSENT = "<same>", "<new>", "<present>", "<absent>"
NO_UID = "00000000-dead-4000-8000-000000000000"

WIDGET_CRD: Object = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.conformance.test"},
    "spec": {
        "group": "conformance.test",
        "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {
                                    "size": {"type": "integer"},
                                    "color": {"type": "string"},
                                    "tags": {"type": "array", "items": {"type": "string"}},
                                    "parts": {
                                        "type": "array",
                                        "x-kubernetes-list-type": "map",
                                        "x-kubernetes-list-map-keys": ["name"],
                                        "items": {
                                            "type": "object",
                                            "required": ["name"],
                                            "properties": {
                                                "name": {"type": "string"},
                                                "count": {"type": "integer"},
                                            },
                                        },
                                    },
                                },
                            },
                            "status": {
                                "type": "object",
                                "properties": {
                                    "ready": {"type": "integer"},
                                    "conditions": {
                                        "type": "array",
                                        "x-kubernetes-list-type": "map",
                                        "x-kubernetes-list-map-keys": ["type"],
                                        "items": {
                                            "type": "object",
                                            "required": ["type"],
                                            "properties": {
                                                "type": {"type": "string"},
                                                "status": {"type": "string"},
                                            },
                                        },
                                    },
                                },
                            },
                        },
                    }
                },
            }
        ],
    },
}
WIDGETS = Resource("conformance.test", "v1", "widgets", "Widget")
NO_KIND = Resource("conformance.test", "v1", "gadgets", "Gadget")


@dataclass
class Session:
    """One side of the comparison: a client, a namespace of its own, and what was last answered."""

    transport: KubeTransport
    namespace: str
    last: dict[str, Object] = field(default_factory=dict)
    client: KubeClient = field(init=False)

    def __post_init__(self) -> None:
        self.client = KubeClient(self.transport)

    def obj(self, resource: Resource, name: str, meta: Object | None = None, **body: Any) -> Object:
        place = {"namespace": self.namespace} if resource.namespaced else {}
        return {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": name, **place, **(meta or {})},
            **body,
        }

    def uid(self, name: str) -> str:
        uid: str = self.last[name]["metadata"]["uid"]
        return uid


Call = Callable[[Session], Awaitable[Object]]


@dataclass(frozen=True)
class Step:
    call: Call
    want: str = "ok"
    see: dict[str, Any] = field(default_factory=dict)


# --- builders of calls ------------------------------------------------------------------------


def post(resource: Resource, name: str, meta: Object | None = None, **body: Any) -> Call:
    return lambda s: s.client.create(
        resource, s.obj(resource, name, meta, **body), field_manager="one"
    )


def pod(name: str, node: str | None = None, **spec: Any) -> Call:
    place = {"nodeName": node} if node else {}
    containers = [{"name": "main", "image": "one"}]
    return post(PODS, name, spec={"containers": containers, **place, **spec})


def get(resource: Resource, name: str) -> Call:
    return lambda s: s.client.get(resource, name, s.namespace)


def apply(
    resource: Resource,
    name: str,
    meta: Object | None = None,
    *,
    manager: str = "one",
    force: bool = True,
    uid: str | None = None,
    sub: str | None = None,
    **body: Any,
) -> Call:
    def call(s: Session) -> Awaitable[Object]:
        known = {None: None, "its": s.uid(name) if uid == "its" else None}.get(uid, uid)
        return s.client.apply(
            resource, s.obj(resource, name, meta, **body),
            field_manager=manager, force=force, uid=known, subresource=sub,
        )  # fmt: skip

    return call


def patch(resource: Resource, name: str, *operations: Object, uid: str | None = None) -> Call:
    return lambda s: s.client.patch_json(
        resource, name, operations, namespace=s.namespace,
        uid=s.uid(name) if uid == "its" else uid, field_manager="one",
    )  # fmt: skip


def status(resource: Resource, name: str, body: Object, **options: Any) -> Call:
    def call(s: Session) -> Awaitable[Object]:
        given = dict(options)
        if given.get("uid") == "its":
            given["uid"] = s.uid(name)
        return s.client.patch_status(resource, name, body, namespace=s.namespace, **given)

    return call


def update(resource: Resource, name: str, version: str | None = None, **body: Any) -> Call:
    def call(s: Session) -> Awaitable[Object]:
        held = s.last[name]
        meta = {**held["metadata"]}
        if version is not None:
            meta["resourceVersion"] = version
        return s.client.update(resource, {**held, **body, "metadata": meta})

    return call


def delete(resource: Resource, name: str, uid: str | None = None, **options: Any) -> Call:
    return lambda s: s.client.delete(
        resource, name, namespace=s.namespace,
        uid=s.uid(name) if uid == "its" else uid, **options,
    )  # fmt: skip


def op(kind: str, path: str, value: Any = None) -> Object:
    return {"op": kind, "path": path, **({} if kind == "remove" else {"value": value})}


def owned(name: str, uid: str = NO_UID) -> Object:
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid}
    return {"ownerReferences": [{**reference, "controller": True, "blockOwnerDeletion": True}]}


def ensure(name: str, known: bool, data: Object, owner_uid: str = NO_UID) -> Call:
    return lambda s: create_or_apply(
        s.client, CONFIGMAPS, s.obj(CONFIGMAPS, name, owned("boss", owner_uid), data=data),
        field_manager="one", known=s.last[name] if known else None,
    )  # fmt: skip


async def _listed(s: Session, resource: Resource, **options: Any) -> Object:
    listing = await s.client.list(resource, s.namespace, **options)
    names = [item["metadata"]["name"] for item in listing.items]
    return {"metadata": {"name": "<list>"}, "names": names}


def listed(resource: Resource, **options: Any) -> Call:
    return lambda s: _listed(s, resource, **options)


GATE = [{"type": "conformance.test/Linked", "status": "True"}]
READY = [{"type": "Ready", "status": "False"}]
