"""An API server in memory, for simulations that need neither time nor processes.

`FakeApi.client()` gives a real `KubeClient` over a transport into this model, so planners,
executors and caches run unchanged. It implements what controllers depend on: resourceVersions,
POST 409, preconditions, the three patches and server-side apply with field ownership, status
subresources, generation, graceful pod deletion, finalizers, paged lists, watch history with
expiry, and garbage collection (by a call of `collect_garbage`). It leaves out schemas, defaults,
admission, RBAC and quotas.

tests/api/test_kube_conformance.py compares its answers with a real kube-apiserver's.
Neighbours: `api_kinds` (what differs between kinds; `kind_of_crd`), `api_fields` (patches,
ownership), `api_net` (delays, losses, crashes).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from pdserve.dst import api_fields as fields
from pdserve.dst.api_checks import (
    check_identity,
    check_pod_spec,
    immutable_uid,
    is_terminating,
    not_found,
    substance,
)
from pdserve.dst.api_deletion import Deletion
from pdserve.dst.api_fields import Ownership, copy
from pdserve.dst.api_kinds import BUILTIN, Change, Store, StoredKind
from pdserve.dst.api_net import FakeTransport, Faults
from pdserve.dst.api_select import Selection
from pdserve.kube import resource as known
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import Object, ObjectKey, Resource, key_of

START = datetime(2026, 1, 1, tzinfo=UTC)


class FakeApi:
    """See the module. Deterministic: uids and versions are counters, time is `now`."""

    def __init__(
        self,
        *kinds: StoredKind,
        now: Callable[[], datetime] | None = None,
        namespaces: tuple[str, ...] = ("default",),
    ) -> None:
        """Make a server that knows the built-in kinds and `kinds`.

        `now` defaults to a calendar that runs with the event loop's clock.
        """
        self.stores = {kind.resource: Store(kind) for kind in (*BUILTIN, *kinds)}
        self._uids = itertools.count(1)
        self.version = 1
        self._deletion = Deletion(self)
        self._now = now or _loop_calendar
        self._pages: dict[str, tuple[int, list[Object]]] = {}
        for name in namespaces:
            meta = {"name": name, "uid": f"namespace-{name}", "resourceVersion": "1"}
            namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": meta}
            self.stores[known.NAMESPACES].objects[ObjectKey("", name)] = namespace

    # --- for tests -------------------------------------------------------------------------

    def client(self, faults: Faults | None = None) -> KubeClient:
        """A client; each may have its own faults."""
        return KubeClient(FakeTransport(self, faults or Faults()))

    def store(self, resource: Resource) -> Store:
        """The objects of a kind.

        Raises:
            KubeError: 404 for an unknown kind.
        """
        store = self.stores.get(resource)
        if store is None:
            raise KubeError(404, "NotFound", "404 page not found")
        return store

    def objects(self, resource: Resource, namespace: str | None = None) -> list[Object]:
        """Copies of all objects, ordered by key."""
        store = self.store(resource)
        return [
            copy(store.objects[key])
            for key in sorted(store.objects)
            if namespace is None or key.namespace == namespace
        ]

    def expire_history(self, resource: Resource) -> None:
        """Forget all changes so far: watches from older versions and half-read lists get 410."""
        self.store(resource).forget(self.version)
        self._pages.clear()

    def wake_watches(self) -> None:
        """Let every open watch look again, e.g. after a client's `faults.down` was set."""
        for store in self.stores.values():
            store.wake()

    def end_pod(self, namespace: str, name: str) -> None:
        """Do what the kubelet does last for a terminating pod: its containers are gone."""
        self.remove(self.store(known.PODS), ObjectKey(namespace, name))

    # --- requests --------------------------------------------------------------------------

    def handle(self, request: KubeRequest) -> Object:
        """Answer one request.

        A patch or update is answered with the stored object itself: not to be changed.

        Raises:
            KubeError: the request is refused, with the status that a real server answers.
        """
        store = self.store(request.resource)
        if request.verb == "list":
            return self._list(store, request)
        if request.verb == "create" and request.subresource == "eviction":
            return self._deletion.evict(store, request)
        if request.verb == "create":
            return copy(self._create(store, request))
        key = ObjectKey(request.namespace or "", request.name or "")
        live = store.objects.get(key)
        if request.verb == "patch" and request.patch == "apply":
            return self._apply(store, key, live, request)
        if live is None:
            if request.verb == "update" and request.body["metadata"].get("uid"):
                message = f'uid mismatch: no {store.kind.resource.plural} "{key.name}" was found'
                raise KubeError(409, "Conflict", message)
            raise not_found(store, key)
        if request.verb == "get":
            return copy(live)
        if request.verb == "delete":
            return copy(self._deletion.delete(store, key, live, request))
        if request.subresource not in (None, "status") or (
            request.subresource == "status" and not store.kind.status
        ):
            raise KubeError(404, "NotFound", "the server could not find the requested resource")
        return self._change(store, key, live, request)

    def _list(self, store: Store, request: KubeRequest) -> Object:
        query = request.query
        limit = int(query.get("limit", "0"))
        token = query.get("continue")
        if token:
            if not token.startswith("page-"):
                raise KubeError(400, "BadRequest", "invalid continue token")
            if token not in self._pages:
                message = "The provided continue parameter is too old"
                raise KubeError(410, "Expired", message)
            version, items = self._pages.pop(token)
        else:
            version = self.version
            chosen = Selection.of(request)
            ordered = (store.objects[key] for key in sorted(store.objects))
            items = [obj for obj in ordered if chosen.includes(obj)]
        meta: Object = {"resourceVersion": str(version)}
        page, rest = (items[:limit], items[limit:]) if limit else (items, [])
        if rest:
            meta["continue"] = f"page-{version}-{key_of(rest[0])}"
            self._pages[meta["continue"]] = (version, rest)
        return {"kind": "List", "metadata": meta, "items": copy(page)}

    def _create(self, store: Store, request: KubeRequest) -> Object:
        obj = copy(request.body)
        meta = obj["metadata"]
        resource = store.kind.resource
        if meta.get("resourceVersion"):
            message = "resourceVersion should not be set on objects to be created"
            raise KubeError(500, "Unknown", message)
        self._check_namespace(resource, request.namespace)
        uid = f"{next(self._uids):08d}-0000-4000-8000-000000000000"
        if "name" not in meta:
            if "generateName" not in meta:
                raise KubeError(422, "Invalid", "name or generateName is required")
            meta["name"] = f"{meta['generateName']}{uid[3:8]}"
        key = ObjectKey(request.namespace or "", meta["name"])
        taken = store.objects.get(key)
        if taken is not None:
            prefix = "object is being deleted: " if is_terminating(taken) else ""
            message = f'{prefix}{resource.plural} "{key.name}" already exists'
            raise KubeError(409, "AlreadyExists", message)
        if store.kind.status:
            obj.pop("status", None)
        return self._insert(store, key, obj, uid, request)

    def _insert(
        self, store: Store, key: ObjectKey, obj: Object, uid: str, request: KubeRequest
    ) -> Object:
        meta = obj["metadata"]
        resource = store.kind.resource
        obj["apiVersion"], obj["kind"] = resource.api_version, resource.kind
        ownership = Ownership(meta.pop("managedFields", None) or [])
        if request.patch != "apply":
            manager = request.query.get("fieldManager", "unknown")
            ownership.updated(manager, "", {}, obj, store.keys)
        if resource == known.PODS:
            obj["status"] = {"phase": "Pending"}
        meta["managedFields"] = ownership.managed_fields(resource.api_version)
        if request.namespace:
            meta["namespace"] = request.namespace
        meta |= {"uid": uid, "creationTimestamp": self.stamp()}
        for owned_by_server in ("deletionTimestamp", "deletionGracePeriodSeconds"):
            meta.pop(owned_by_server, None)
        if store.kind.generation:
            meta["generation"] = 1
        if "dryRun" in request.query:
            return obj
        return self.commit(store, key, "ADDED", None, obj)

    def _change(self, store: Store, key: ObjectKey, live: Object, request: KubeRequest) -> Object:
        body, base = request.body, live
        if request.verb == "update":
            changed = copy(body)
            if changed["metadata"].get("uid") not in (None, "", live["metadata"]["uid"]):
                raise KubeError(409, "Conflict", "the uid in the precondition does not match")
        elif request.patch == "json":
            changed = fields.json_patch(base, body)
        elif request.patch == "merge":
            changed = fields.merge_patch(base, body)
        else:
            if not store.builtin:
                message = "the body of the request was in an unknown format"
                raise KubeError(415, "UnsupportedMediaType", message)
            changed = fields.strategic_patch(base, body, store.keys)
        if request.subresource and not store.builtin:
            uid = live["metadata"]["uid"]  # custom resources ignore it here
            changed = {**changed, "metadata": {**changed["metadata"], "uid": uid}}
        check_identity(store, key, live, changed)
        explicit = changed["metadata"].get("managedFields")
        rewritten = explicit != live["metadata"].get("managedFields") and explicit is not None
        managed = explicit if rewritten else live["metadata"].get("managedFields", [])
        ownership = Ownership(managed)
        new = self._only(store, live, changed, request.subresource)
        manager = request.query.get("fieldManager", "unknown")
        ownership.updated(manager, request.subresource or "", live, new, store.keys)
        return self._finish(store, key, live, new, ownership, request)

    def _apply(
        self, store: Store, key: ObjectKey, live: Object | None, request: KubeRequest
    ) -> Object:
        config = copy(request.body)
        wanted_uid = config["metadata"].pop("uid", None)
        manager = request.query["fieldManager"]
        resource = store.kind.resource
        if config["metadata"].get("managedFields") is not None:
            raise KubeError(400, "BadRequest", "metadata.managedFields must be nil")
        if live is None:
            self._check_namespace(resource, request.namespace)
            if request.subresource:
                raise not_found(store, key)
            if wanted_uid is not None:
                message = f"uid mismatch: {wanted_uid}, and no existing object was found"
                raise KubeError(409, "Conflict", message)
            if store.kind.status:
                config.pop("status", None)
            ownership = Ownership([])
            ownership.sets[(manager, "Apply", "")] = fields.fields_of(config, store.keys)
            config["metadata"]["managedFields"] = ownership.managed_fields(resource.api_version)
            uid = f"{next(self._uids):08d}-0000-4000-8000-000000000000"
            return self._insert(store, key, config, uid, request)
        guarded = not request.subresource or store.builtin
        if guarded and wanted_uid not in (None, live["metadata"]["uid"]):
            raise immutable_uid(store, key, wanted_uid)
        if config["metadata"].pop("resourceVersion", None) not in (
            None,
            live["metadata"]["resourceVersion"],
        ):
            message = f'{resource.plural} "{key.name}": the object has been modified'
            raise KubeError(409, "Conflict", message)
        config = self._only(store, live, config, request.subresource, applied=True)
        ownership = Ownership(live["metadata"].get("managedFields", []))
        force = request.query.get("force") == "true"
        subresource = request.subresource or ""
        merged = ownership.apply(manager, subresource, live, config, store.keys, force)
        return self._finish(store, key, live, merged, ownership, request)

    def _only(
        self,
        store: Store,
        live: Object,
        changed: Object,
        subresource: str | None,
        *,
        applied: bool = False,
    ) -> Object:
        """The part of `changed` that this endpoint may write; the rest as it is in `live`."""
        new = dict(changed)
        if subresource == "status":
            base = {"metadata": {}} if applied else dict(live)
            if "status" in new:
                base["status"] = new["status"]
            else:
                base.pop("status", None)
            if not applied and store.builtin:  # labels and annotations may come along
                base["metadata"] = new["metadata"]
            return base
        if store.kind.status:
            new.pop("status", None)
            if not applied and "status" in live:
                new["status"] = live["status"]
        return new

    def _finish(
        self,
        store: Store,
        key: ObjectKey,
        live: Object,
        new: Object,
        ownership: Ownership,
        request: KubeRequest,
    ) -> Object:
        resource = store.kind.resource
        old_meta = live["metadata"]
        kept = {"name", "namespace", "uid", "creationTimestamp", "resourceVersion", "generation",
                "deletionTimestamp", "deletionGracePeriodSeconds"}  # fmt: skip
        meta = {k: v for k, v in new.get("metadata", {}).items() if k not in kept}
        meta = {k: old_meta[k] for k in old_meta if k in kept} | meta
        meta["managedFields"] = ownership.managed_fields(resource.api_version)
        new = {**new, "apiVersion": resource.api_version, "kind": resource.kind, "metadata": meta}
        if resource == known.PODS and request.subresource is None:
            check_pod_spec(key, live["spec"], new["spec"])
        if store.kind.generation and substance(live) != substance(new):
            meta["generation"] = old_meta.get("generation", 0) + 1
        if new == live:
            return live
        if "dryRun" in request.query:
            return new
        if is_terminating(new) and not meta.get("finalizers") and resource != known.PODS:
            return self.remove(store, key, new)
        return self.commit(store, key, "MODIFIED", live, new)

    def collect_garbage(self) -> int:
        """Run one round of the garbage collector; returns how many objects it acted on."""
        return self._deletion.collect_garbage()

    def budget_status(self, budget: Object, status: Object) -> None:
        """Replace a PodDisruptionBudget's status, as the disruption controller does."""
        meta = budget["metadata"]
        resource, body = known.POD_DISRUPTION_BUDGETS, {**budget, "status": status}
        self.handle(
            KubeRequest("update", resource, meta["namespace"], meta["name"], "status", body=body)
        )

    # --- the rest --------------------------------------------------------------------------

    def commit(
        self, store: Store, key: ObjectKey, event: str, before: Object | None, obj: Object
    ) -> Object:
        """Store an object as a new version, and tell the watches."""
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        store.objects[key] = obj
        store.record(Change(self.version, event, obj, before))
        return obj

    def remove(self, store: Store, key: ObjectKey, last: Object | None = None) -> Object:
        """Take an object out for good; `last` is how watches see it."""
        live = store.objects.pop(key)
        gone = copy(last or live)
        self.version += 1
        gone["metadata"]["resourceVersion"] = str(self.version)
        store.record(Change(self.version, "DELETED", gone, live))
        return gone

    def _check_namespace(self, resource: Resource, namespace: str | None) -> None:
        namespaces = self.stores[known.NAMESPACES].objects
        if resource.namespaced and ObjectKey("", namespace or "") not in namespaces:
            raise KubeError(404, "NotFound", f'namespaces "{namespace}" not found')

    def stamp(self, after: float = 0) -> str:
        """The time `after` seconds from now (RFC 3339, UTC), as objects carry it."""
        return (self._now() + timedelta(seconds=after)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _loop_calendar() -> datetime:
    return START + timedelta(seconds=asyncio.get_running_loop().time())
