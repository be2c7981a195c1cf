"""Requests to an API server, each with what it must answer: one table for model and real server.

A case is a list of steps on one namespace; `Session` remembers what each object last looked like,
so that a step can say what must be the same, or new. Run by `test_kube_conformance`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from pdserve.kube.client import KubeClient, KubeRequest
from pdserve.kube.ownership import create_or_apply
from pdserve.kube.resource import (
    CONFIGMAPS,
    LEASES,
    NODES,
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

    client: KubeClient
    namespace: str
    last: dict[str, Object] = field(default_factory=dict)

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

CASES: dict[str, list[Step]] = {
    "a name is taken once": [
        Step(post(CONFIGMAPS, "a", data={"x": "1"}), see={"metadata.generation": ABSENT}),
        Step(post(CONFIGMAPS, "a", data={"x": "2"}), "409 AlreadyExists"),
        Step(get(CONFIGMAPS, "a"), see={"data": {"x": "1"}, "metadata.resourceVersion": SAME}),
        Step(get(CONFIGMAPS, "b"), "404 NotFound"),
    ],
    "a kind or namespace that is not there": [
        Step(lambda s: s.client.get(NO_KIND, "a", s.namespace), "404 NotFound"),
        Step(listed(NO_KIND), "404 NotFound"),
        Step(
            lambda s: s.client.create(
                CONFIGMAPS, {"metadata": {"name": "a", "namespace": "conformance-nowhere"}}
            ),
            "404 NotFound",
        ),
        Step(lambda s: s.client.get(CONFIGMAPS, "a", "conformance-nowhere"), "404 NotFound"),
    ],
    "the server owns uid, version and times": [
        Step(post(CONFIGMAPS, "a", {"resourceVersion": "7"}), "500 Unknown"),
        Step(
            post(CONFIGMAPS, "a", {"deletionTimestamp": "2020-01-01T00:00:00Z"}),
            see={"metadata.deletionTimestamp": ABSENT, "metadata.uid": PRESENT},
        ),
    ],
    "generateName": [
        Step(
            lambda s: s.client.create(
                CONFIGMAPS, {"metadata": {"generateName": "g-", "namespace": s.namespace}}
            ),
            see={"metadata.name": PRESENT, "metadata.generateName": "g-"},
        ),
    ],
    "a pod is created pending": [
        Step(pod("a"), see={"status.phase": "Pending", "metadata.generation": 1}),
        Step(pod("a"), "409 AlreadyExists"),
    ],
    "JSON patch with tests": [
        Step(pod("a")),
        Step(
            patch(PODS, "a", op("add", "/metadata/labels", {"x": "1"}), uid=NO_UID),
            "422 TestFailed",
        ),
        Step(
            patch(PODS, "a", op("add", "/metadata/labels", {"x": "1"}), uid="its"),
            see={"metadata.labels": {"x": "1"}, "metadata.resourceVersion": NEW},
        ),
        Step(
            patch(PODS, "a", op("test", "/metadata/labels/x", "2"), uid="its"),
            "422 TestFailed",
        ),
        Step(
            patch(PODS, "a", op("replace", "/metadata/labels/x", "1")),
            see={"metadata.resourceVersion": SAME},
        ),
        Step(patch(PODS, "a", op("remove", "/metadata/labels/absent")), "422 Invalid"),
        Step(
            patch(PODS, "a", op("replace", "/metadata/labels/new", "1")),
            see={"metadata.labels": {"new": "1", "x": "1"}},
        ),
        Step(patch(PODS, "a", op("remove", "/metadata/labels/new"))),
        Step(patch(PODS, "b", op("add", "/metadata/labels", {})), "404 NotFound"),
        Step(
            patch(PODS, "a", op("add", "/metadata/labels/y~1z", "2")),
            see={"metadata.labels": {"x": "1", "y/z": "2"}},
        ),
        Step(
            patch(PODS, "a", op("remove", "/metadata/labels/x"), uid="its"),
            see={"metadata.labels": {"y/z": "2"}, "metadata.generation": 1},
        ),
    ],
    "a pod's spec is fixed": [
        Step(pod("a")),
        Step(patch(PODS, "a", op("add", "/spec/nodeName", "n")), "422 Invalid"),
        Step(patch(PODS, "a", op("add", "/spec/hostNetwork", True)), "422 Invalid"),
        Step(
            patch(PODS, "a", op("replace", "/spec/containers/0/image", "two")),
            see={"metadata.generation": 2},
        ),
    ],
    "status of a pod, merged by condition type": [
        Step(pod("a")),
        Step(
            status(PODS, "a", {"conditions": GATE}, uid="its", strategic=True),
            see={"status.phase": "Pending", "metadata.generation": 1},
        ),
        Step(
            status(PODS, "a", {"conditions": READY}, strategic=True),
            see={"status.conditions.*.type": ["Ready", "conformance.test/Linked"]},
        ),
        Step(
            status(PODS, "a", {"conditions": GATE}, uid="its", strategic=True),
            see={"metadata.resourceVersion": SAME},
        ),
        Step(status(PODS, "a", {"conditions": GATE}, uid=NO_UID, strategic=True), "409 Conflict"),
        Step(
            status(PODS, "a", {"conditions": GATE}, resource_version="1", strategic=True),
            "409 Conflict",
        ),
        Step(
            status(PODS, "a", {"conditions": READY}),
            see={"status.conditions.*.type": ["Ready"]},
        ),
        Step(
            patch(PODS, "a", op("add", "/status/phase", "Running")),
            see={"status.phase": "Pending", "metadata.resourceVersion": SAME},
        ),
    ],
    "deleting pods": [
        Step(pod("free")),
        Step(delete(PODS, "free", NO_UID), "409 Conflict"),
        Step(delete(PODS, "free", "its"), see={"metadata.deletionTimestamp": PRESENT}),
        Step(get(PODS, "free"), "404 NotFound"),
        Step(pod("bound", "node-x")),
        Step(
            delete(PODS, "bound", "its"),
            see={
                "metadata.deletionTimestamp": PRESENT,
                "metadata.deletionGracePeriodSeconds": 30,
                "metadata.generation": 2,
                "metadata.resourceVersion": NEW,
            },
        ),
        Step(get(PODS, "bound"), see={"metadata.deletionTimestamp": PRESENT}),
        Step(delete(PODS, "bound", "its"), see={"metadata.resourceVersion": SAME}),
        Step(pod("bound"), "409 AlreadyExists"),
        Step(
            patch(PODS, "bound", op("add", "/metadata/annotations", {"x": "1"}), uid="its"),
            see={"metadata.annotations": {"x": "1"}},
        ),
        Step(delete(PODS, "bound", "its", grace=5), see={"metadata.deletionTimestamp": PRESENT}),
        Step(delete(PODS, "bound", "its", grace=0)),
        Step(get(PODS, "bound"), "404 NotFound"),
        Step(delete(PODS, "bound", grace=0), "404 NotFound"),
        Step(pod("short", "node-x", terminationGracePeriodSeconds=7)),
        Step(delete(PODS, "short"), see={"metadata.deletionGracePeriodSeconds": 7}),
        Step(pod("dead", "node-x")),
        Step(status(PODS, "dead", {"phase": "Failed"})),
        Step(delete(PODS, "dead")),
        Step(get(PODS, "dead"), "404 NotFound"),
    ],
    "deleting other things": [
        Step(post(CONFIGMAPS, "a")),
        Step(delete(CONFIGMAPS, "a", "its"), see={"status": "Success", "details.name": "a"}),
        Step(get(CONFIGMAPS, "a"), "404 NotFound"),
        Step(post(CONFIGMAPS, "f", {"finalizers": ["conformance.test/hold"]})),
        Step(
            delete(CONFIGMAPS, "f", "its"),
            see={"metadata.deletionTimestamp": PRESENT, "metadata.finalizers": PRESENT},
        ),
        Step(post(CONFIGMAPS, "f"), "409 AlreadyExists"),
        Step(
            patch(CONFIGMAPS, "f", op("remove", "/metadata/finalizers"), uid="its"),
            see={"metadata.name": "f"},
        ),
        Step(get(CONFIGMAPS, "f"), "404 NotFound"),
    ],
    "optimistic locking by PUT": [
        Step(post(LEASES, "a", spec={"holderIdentity": "x", "leaseDurationSeconds": 15})),
        Step(
            update(LEASES, "a", spec={"holderIdentity": "y", "leaseDurationSeconds": 15}),
            see={"spec.holderIdentity": "y", "metadata.resourceVersion": NEW},
        ),
        Step(update(LEASES, "a", "1", spec={"holderIdentity": "z"}), "409 Conflict"),
        Step(
            update(LEASES, "a", spec={"holderIdentity": "y", "leaseDurationSeconds": 15}),
            see={"metadata.resourceVersion": SAME},
        ),
        Step(delete(LEASES, "a")),
        Step(update(LEASES, "a", spec={"holderIdentity": "y"}), "409 Conflict"),
        Step(post(LEASES, "a", spec={"holderIdentity": "z", "leaseDurationSeconds": 15})),
        Step(
            # The predecessor's uid and version.
            lambda s: s.client.update(
                LEASES,
                s.obj(LEASES, "a", {"uid": NO_UID}, spec={"holderIdentity": "y"}),
            ),
            "409 Conflict",
        ),
    ],
    "generation counts the spec only": [
        Step(
            post(WIDGETS, "a", spec={"size": 1}, status={"ready": 1}),
            see={"metadata.generation": 1, "status": ABSENT},
        ),
        Step(
            status(WIDGETS, "a", {"ready": 2}),
            see={"metadata.generation": 1, "status.ready": 2, "spec.size": 1},
        ),
        Step(
            patch(WIDGETS, "a", op("replace", "/spec/size", 2), op("replace", "/status/ready", 9)),
            see={"metadata.generation": 2, "status.ready": 2},
        ),
        Step(
            patch(WIDGETS, "a", op("add", "/metadata/labels", {"x": "1"})),
            see={"metadata.generation": 2},
        ),
        Step(status(WIDGETS, "a", {"ready": 2}, strategic=True), "415 UnsupportedMediaType"),
        Step(
            # Custom resources ignore a uid here; our client finds out by the answer.
            status(WIDGETS, "a", {"ready": 4}, uid=NO_UID),
            "409 Conflict",
        ),
        Step(get(WIDGETS, "a"), see={"status.ready": 4}),
        Step(status(WIDGETS, "a", {"ready": 3}, resource_version="1"), "409 Conflict"),
        Step(
            lambda s: s.client.patch_json(
                WIDGETS,
                "a",
                [op("replace", "/status/ready", 3)],
                namespace=s.namespace,
                uid=NO_UID,
                subresource="status",
            ),
            "422 TestFailed",
        ),
        Step(
            apply(WIDGETS, "a", sub="status", uid=NO_UID, status={"ready": 5}),
            "409 Conflict",
        ),
        Step(get(WIDGETS, "a"), see={"status.ready": 5}),
        Step(
            apply(WIDGETS, "a", {"resourceVersion": "1"}, sub="status", status={"ready": 6}),
            "409 Conflict",
        ),
        Step(
            apply(WIDGETS, "a", {"resourceVersion": "1"}, spec={"size": 9}),
            "409 Conflict",
        ),
        Step(
            delete(WIDGETS, "a", propagation="Foreground"),
            see={"metadata.finalizers": ["foregroundDeletion"], "metadata.generation": 3},
        ),
    ],
    "apply creates, owns and drops": [
        Step(apply(WIDGETS, "a", spec={"size": 1, "color": "red"}), see={"metadata.generation": 1}),
        Step(
            apply(WIDGETS, "a", spec={"size": 1, "color": "red"}),
            see={"metadata.resourceVersion": SAME},
        ),
        Step(
            apply(WIDGETS, "a", spec={"size": 2}),
            see={"spec": {"size": 2}, "metadata.generation": 2},
        ),
        Step(
            apply(WIDGETS, "a", manager="two", force=False, spec={"size": 3}),
            "409 Conflict",
        ),
        Step(
            apply(WIDGETS, "a", manager="two", force=False, spec={"size": 2, "color": "blue"}),
            see={"spec": {"size": 2, "color": "blue"}},
        ),
        Step(
            apply(WIDGETS, "a", spec={}),
            see={"spec": {"size": 2, "color": "blue"}},
        ),
        Step(
            apply(WIDGETS, "a", manager="two", spec={"color": "blue"}),
            see={"spec": {"color": "blue"}},
        ),
        Step(
            apply(WIDGETS, "a", manager="three", spec={"color": "green"}),
            see={"spec": {"color": "green"}},
        ),
        Step(
            apply(WIDGETS, "a", manager="two", spec={"size": 5}),
            see={"spec": {"color": "green", "size": 5}},
        ),
    ],
    "apply with a uid guard": [
        Step(apply(CONFIGMAPS, "a", uid=NO_UID, data={"x": "1"}), "409 Conflict"),
        Step(get(CONFIGMAPS, "a"), "404 NotFound"),
        Step(post(CONFIGMAPS, "a", data={"x": "1"})),
        Step(apply(CONFIGMAPS, "a", uid=NO_UID, data={"x": "2"}), "409 Conflict"),
        Step(apply(CONFIGMAPS, "a", uid="its", data={"x": "2"}), see={"data": {"x": "2"}}),
    ],
    "apply merges into a stranger's object": [
        Step(
            lambda s: s.client.create(
                CONFIGMAPS, s.obj(CONFIGMAPS, "a", data={"theirs": "1"}), field_manager="user"
            )
        ),
        Step(
            apply(CONFIGMAPS, "a", owned("boss"), data={"ours": "2"}),
            see={
                "data": {"theirs": "1", "ours": "2"},
                "metadata.ownerReferences.*.name": ["boss"],
            },
        ),
        Step(
            apply(CONFIGMAPS, "a", data={}),
            see={"data": {"theirs": "1"}, "metadata.ownerReferences": ABSENT},
        ),
    ],
    "apply to lists: keyed ones by item, others whole": [
        Step(
            apply(
                WIDGETS,
                "a",
                spec={"tags": ["x", "y"], "parts": [{"name": "p", "count": 1}, {"name": "q"}]},
            )
        ),
        Step(
            apply(
                WIDGETS,
                "a",
                manager="two",
                spec={"parts": [{"name": "r", "count": 3}, {"name": "q", "count": 2}]},
            ),
            see={
                "spec.parts.*.name": ["p", "q", "r"],
                "spec.parts.*.count": [1, 2, 3],
                "spec.tags": ["x", "y"],
            },
        ),
        Step(
            apply(WIDGETS, "a", spec={"tags": ["z"], "parts": [{"name": "q"}]}),
            see={"spec.parts.*.name": ["q", "r"], "spec.tags": ["z"]},
        ),
        Step(
            apply(WIDGETS, "a", manager="two", spec={}),
            see={"spec.parts": [{"name": "q"}], "spec.tags": ["z"]},
        ),
        Step(apply(WIDGETS, "a", spec={"size": 1}), see={"spec": {"size": 1}}),
    ],
    "apply to the status subresource": [
        Step(post(WIDGETS, "a", spec={"size": 1})),
        Step(
            apply(
                WIDGETS,
                "a",
                sub="status",
                uid="its",
                spec={"size": 9},
                status={"ready": 1, "conditions": GATE},
            ),
            see={"status.ready": 1, "spec.size": 1, "metadata.generation": 1},
        ),
        Step(
            apply(WIDGETS, "a", sub="status", manager="two", status={"conditions": READY}),
            see={"status.conditions.*.type": ["Ready", "conformance.test/Linked"]},
        ),
        Step(
            apply(WIDGETS, "a", sub="status", status={"conditions": GATE}),
            see={
                "status.ready": ABSENT,
                "status.conditions.*.type": ["Ready", "conformance.test/Linked"],
            },
        ),
        Step(
            apply(WIDGETS, "a", sub="status", status={"conditions": GATE}),
            see={"metadata.resourceVersion": SAME},
        ),
        Step(
            apply(WIDGETS, "a", spec={"size": 2}, status={"ready": 7}),
            see={"spec.size": 2, "status.ready": ABSENT},
        ),
        Step(apply(WIDGETS, "b", sub="status", status={"ready": 1}), "404 NotFound"),
    ],
    "a POST's fields stay unless they are handed over": [
        Step(post(CONFIGMAPS, "a", owned("boss"), data={"x": "1", "y": "2"})),
        Step(
            apply(CONFIGMAPS, "a", owned("boss"), uid="its", data={"x": "1"}),
            see={"data": {"x": "1", "y": "2"}},
        ),
        Step(ensure("a", True, {"x": "1"}), see={"data": {"x": "1"}}),
        Step(ensure("a", True, {"x": "1"}), see={"metadata.resourceVersion": SAME}),
        Step(ensure("a", False, {"x": "3"}), see={"data": {"x": "3"}}),
        Step(ensure("b", False, {"x": "1"}), see={"metadata.uid": PRESENT}),
        Step(ensure("b", True, {"z": "1"}), see={"data": {"z": "1"}}),
    ],
    "a PUT takes fields from an applier": [
        Step(apply(CONFIGMAPS, "a", data={"x": "1", "y": "1"})),
        Step(
            lambda s: s.client.patch_json(
                CONFIGMAPS,
                "a",
                [op("replace", "/data/x", "2")],
                namespace=s.namespace,
                field_manager="user",
            ),
            see={"data": {"x": "2", "y": "1"}},
        ),
        Step(apply(CONFIGMAPS, "a", force=False, data={"x": "1", "y": "1"}), "409 Conflict"),
        Step(apply(CONFIGMAPS, "a", data={"y": "1"}), see={"data": {"x": "2", "y": "1"}}),
    ],
    "apply onto a terminating pod": [
        Step(pod("a", "node-x")),
        Step(delete(PODS, "a")),
        Step(
            apply(PODS, "a", {"labels": {"x": "1"}}),
            see={"metadata.labels": {"x": "1"}, "metadata.deletionTimestamp": PRESENT},
        ),
        Step(delete(PODS, "a", grace=0)),
    ],
    "dry run writes nothing": [
        Step(
            lambda s: s.client.create(CONFIGMAPS, s.obj(CONFIGMAPS, "a"), dry_run=True),
            see={"metadata.uid": PRESENT},
        ),
        Step(get(CONFIGMAPS, "a"), "404 NotFound"),
    ],
    "lists: pages, selectors, order": [
        Step(post(CONFIGMAPS, "c", {"labels": {"k": "1"}})),
        Step(post(CONFIGMAPS, "a", {"labels": {"k": "1", "l": "2"}})),
        Step(post(CONFIGMAPS, "b")),
        Step(listed(CONFIGMAPS), see={"names": ["a", "b", "c"]}),
        Step(listed(CONFIGMAPS, page_size=1), see={"names": ["a", "b", "c"]}),
        Step(listed(CONFIGMAPS, label_selector="k=1"), see={"names": ["a", "c"]}),
        Step(listed(CONFIGMAPS, label_selector="k=1,l!=2"), see={"names": ["c"]}),
        Step(listed(CONFIGMAPS, label_selector="!k"), see={"names": ["b"]}),
        Step(listed(CONFIGMAPS, label_selector="l"), see={"names": ["a"]}),
        Step(listed(CONFIGMAPS, field_selector="metadata.name=b"), see={"names": ["b"]}),
        Step(
            lambda s: s.client._send(
                KubeRequest("list", CONFIGMAPS, s.namespace, query={"limit": "1", "continue": "no"})
            ),
            "400 BadRequest",
        ),
    ],
    "nodes are cluster-scoped": [
        Step(post(NODES, "conformance-node", {"labels": {"x": "1"}})),
        Step(post(NODES, "conformance-node"), "409 AlreadyExists"),
        Step(
            lambda s: s.client.patch_status(
                NODES, "conformance-node", {"conditions": READY}, strategic=True
            ),
            see={"status.conditions.*.type": ["Ready"]},
        ),
        Step(lambda s: s.client.delete(NODES, "conformance-node"), see={"status": "Success"}),
    ],
}
