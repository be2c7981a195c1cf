"""An API server in memory, for simulations that need neither time nor processes.

`FakeApi.client()` gives a real `KubeClient` over a transport into this model, so planners,
executors and caches run unchanged. It knows what controllers depend on: resourceVersions, POST
409, preconditions, the three patches and server-side apply with field ownership, status
subresources, generation, graceful pod deletion, finalizers, paged lists, watch history with
expiry, and garbage collection (when told to: `collect_garbage`). It does not know: schemas,
defaults, admission, RBAC, quotas.

What it answers is held to a real kube-apiserver by tests/api/test_kube_conformance.py.
Neighbours: `api_kinds` (what differs between kinds; `kind_of_crd`), `api_fields` (patches,
ownership), `api_net` (delays, losses, crashes).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from pdserve.dst import api_fields as fields
from pdserve.dst.api_fields import Ownership, copy
from pdserve.dst.api_kinds import BUILTIN, Change, Store, StoredKind
from pdserve.dst.api_net import FakeTransport, Faults
from pdserve.dst.api_select import Selection
from pdserve.dst.disruption import grant
from pdserve.kube import resource as known
from pdserve.kube.client import KubeClient, KubeRequest
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import Object, ObjectKey, Resource, key_of

DEFAULT_GRACE = 30
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
        self._stores = {kind.resource: Store(kind) for kind in (*BUILTIN, *kinds)}
        self._uids = itertools.count(1)
        self.version = 1
        self._now = now or _loop_calendar
        self._pages: dict[str, tuple[int, list[Object]]] = {}
        for name in namespaces:
            meta = {"name": name, "uid": f"namespace-{name}", "resourceVersion": "1"}
            namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": meta}
            self._stores[known.NAMESPACES].objects[ObjectKey("", name)] = namespace

    # --- for tests -------------------------------------------------------------------------

    def client(self, faults: Faults | None = None) -> KubeClient:
        """A client; each may have its own faults."""
        return KubeClient(FakeTransport(self, faults or Faults()))

    def store(self, resource: Resource) -> Store:
        """The objects of a kind. Raises 404 for an unknown kind, as the server does."""
        store = self._stores.get(resource)
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
        for store in self._stores.values():
            store.wake()

    def end_pod(self, namespace: str, name: str) -> None:
        """The kubelet's last word on a terminating pod: its containers are gone."""
        self._remove(self.store(known.PODS), ObjectKey(namespace, name))

    # --- requests --------------------------------------------------------------------------

    def handle(self, request: KubeRequest) -> Object:
        """Answer one request; raises `KubeError` as the server would refuse.

        A patch or update is answered with the stored object itself: not to be changed.
        """
        store = self.store(request.resource)
        if request.verb == "list":
            return self._list(store, request)
        if request.verb == "create" and request.subresource == "eviction":
            return self._evict(store, request)
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
            raise _not_found(store, key)
        if request.verb == "get":
            return copy(live)
        if request.verb == "delete":
            return copy(self._delete(store, key, live, request))
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
            prefix = "object is being deleted: " if _terminating(taken) else ""
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
        meta |= {"uid": uid, "creationTimestamp": self._stamp()}
        for owned_by_server in ("deletionTimestamp", "deletionGracePeriodSeconds"):
            meta.pop(owned_by_server, None)
        if store.kind.generation:
            meta["generation"] = 1
        if "dryRun" in request.query:
            return obj
        return self._commit(store, key, "ADDED", None, obj)

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
        _check_identity(store, key, live, changed)
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
                raise _not_found(store, key)
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
            raise _immutable_uid(store, key, wanted_uid)
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
            _check_pod_spec(key, live["spec"], new["spec"])
        if store.kind.generation and _substance(live) != _substance(new):
            meta["generation"] = old_meta.get("generation", 0) + 1
        if new == live:
            return live
        if "dryRun" in request.query:
            return new
        if _terminating(new) and not meta.get("finalizers") and resource != known.PODS:
            return self._remove(store, key, new)
        return self._commit(store, key, "MODIFIED", live, new)

    # --- deletion --------------------------------------------------------------------------

    def _evict(self, store: Store, request: KubeRequest) -> Object:
        """Delete a pod if its PodDisruptionBudget allows it now."""
        key = ObjectKey(request.namespace or "", request.name or "")
        live = store.objects.get(key)
        if live is None:
            raise _not_found(store, key)
        budgets = self.objects(known.POD_DISRUPTION_BUDGETS, key.namespace)
        granted = grant(budgets, live, self._stamp())
        if granted is not None:
            self.budget_status(*granted)
        self._delete(store, key, live, KubeRequest("delete", known.PODS, key.namespace, key.name))
        return {"kind": "Status", "status": "Success"}

    def budget_status(self, budget: Object, status: Object) -> None:
        """Replace a PodDisruptionBudget's status, as the disruption controller does."""
        meta = budget["metadata"]
        resource, body = known.POD_DISRUPTION_BUDGETS, {**budget, "status": status}
        self.handle(
            KubeRequest("update", resource, meta["namespace"], meta["name"], "status", body=body)
        )

    def _delete(self, store: Store, key: ObjectKey, live: Object, request: KubeRequest) -> Object:
        options = request.body or {}
        wanted = options.get("preconditions") or {}
        meta = live["metadata"]
        for guard in ("uid", "resourceVersion"):
            if guard in wanted and wanted[guard] != meta[guard]:
                message = f"the {guard} in the precondition ({wanted[guard]}) does not match"
                raise KubeError(409, "Conflict", message)
        finalizers = list(meta.get("finalizers") or [])
        hold = {"Orphan": "orphan", "Foreground": "foregroundDeletion"}
        policy = options.get("propagationPolicy")
        if policy in hold and hold[policy] not in finalizers and not _terminating(live):
            finalizers.append(hold[policy])
        grace = self._grace(store, live, options.get("gracePeriodSeconds"))
        if grace == 0 and not finalizers:
            gone = copy(live)
            if store.kind.resource == known.PODS:
                gone["metadata"] |= self._mark(0)
            return self._deleted(store, self._remove(store, key, gone))
        if _terminating(live) and grace >= meta.get("deletionGracePeriodSeconds", 0):
            return live
        marked = copy(live)
        marked["metadata"] |= self._mark(grace)
        if finalizers:
            marked["metadata"]["finalizers"] = finalizers
        if store.kind.generation:
            marked["metadata"]["generation"] = meta.get("generation", 0) + 1
        return self._commit(store, key, "MODIFIED", live, marked)

    @staticmethod
    def _grace(store: Store, live: Object, asked: int | None) -> int:
        """Only a pod that some node may run ends gracefully."""
        if store.kind.resource != known.PODS or not live["spec"].get("nodeName"):
            return 0
        if live.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return 0
        default = live["spec"].get("terminationGracePeriodSeconds", DEFAULT_GRACE)
        return int(default if asked is None else asked)

    def _mark(self, grace: int) -> Object:
        return {"deletionTimestamp": self._stamp(grace), "deletionGracePeriodSeconds": grace}

    def _remove(self, store: Store, key: ObjectKey, last: Object | None = None) -> Object:
        live = store.objects.pop(key)
        gone = copy(last or live)
        self.version += 1
        gone["metadata"]["resourceVersion"] = str(self.version)
        store.record(Change(self.version, "DELETED", gone, live))
        return gone

    @staticmethod
    def _deleted(store: Store, gone: Object) -> Object:
        """What DELETE answers when the object is gone at once."""
        if store.kind.resource == known.PODS:
            return gone
        meta, plural = gone["metadata"], store.kind.resource.plural
        details = {"name": meta["name"], "kind": plural, "uid": meta["uid"]}
        return {"kind": "Status", "metadata": {}, "status": "Success", "details": details}

    def collect_garbage(self) -> int:
        """One round of the garbage collector; returns how many objects it acted on."""
        live = {o["metadata"]["uid"] for s in self._stores.values() for o in s.objects.values()}
        acted = 0
        for store in self._stores.values():
            for key in sorted(store.objects):
                obj = store.objects[key]
                owners = obj["metadata"].get("ownerReferences") or []
                if owners and not any(owner["uid"] in live for owner in owners):
                    acted += not _terminating(obj)
                    self._delete(store, key, obj, KubeRequest("delete", store.kind.resource))
                elif _terminating(obj):
                    acted += self._settle(store, key, obj)
        return acted

    def _settle(self, store: Store, key: ObjectKey, obj: Object) -> int:
        """Orphan or delete the dependents of an owner that waits for it, then let it go."""
        finalizers = obj["metadata"].get("finalizers") or []
        orphan = "orphan" in finalizers
        if not orphan and "foregroundDeletion" not in finalizers:
            return 0
        waiting = False
        for other, place, dependent in self._dependents(obj["metadata"]["uid"]):
            if orphan:
                kept = copy(dependent)
                references = kept["metadata"].pop("ownerReferences")
                left = [r for r in references if r["uid"] != obj["metadata"]["uid"]]
                if left:
                    kept["metadata"]["ownerReferences"] = left
                self._commit(other, place, "MODIFIED", dependent, kept)
            else:
                resource = other.kind.resource
                self._delete(other, place, dependent, KubeRequest("delete", resource))
                waiting |= place in other.objects
        if waiting:
            return 0
        freed = copy(obj)
        left_over = [f for f in finalizers if f not in ("orphan", "foregroundDeletion")]
        freed["metadata"]["finalizers"] = left_over
        if left_over:
            self._commit(store, key, "MODIFIED", obj, freed)
        else:
            self._remove(store, key, freed)
        return 1

    def _dependents(self, uid: str) -> Iterator[tuple[Store, ObjectKey, Object]]:
        for store in self._stores.values():
            for key in sorted(store.objects):
                owners = store.objects[key]["metadata"].get("ownerReferences") or []
                if any(owner["uid"] == uid for owner in owners):
                    yield store, key, store.objects[key]

    # --- the rest --------------------------------------------------------------------------

    def _commit(
        self, store: Store, key: ObjectKey, event: str, before: Object | None, obj: Object
    ) -> Object:
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        store.objects[key] = obj
        store.record(Change(self.version, event, obj, before))
        return obj

    def _check_namespace(self, resource: Resource, namespace: str | None) -> None:
        namespaces = self._stores[known.NAMESPACES].objects
        if resource.namespaced and ObjectKey("", namespace or "") not in namespaces:
            raise KubeError(404, "NotFound", f'namespaces "{namespace}" not found')

    def _stamp(self, after: float = 0) -> str:
        return (self._now() + timedelta(seconds=after)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _loop_calendar() -> datetime:
    return START + timedelta(seconds=asyncio.get_running_loop().time())


def _terminating(obj: Object) -> bool:
    return "deletionTimestamp" in obj["metadata"]


def _substance(obj: Object) -> Object:
    return {k: v for k, v in obj.items() if k not in ("metadata", "status", "apiVersion", "kind")}


def _not_found(store: Store, key: ObjectKey) -> KubeError:
    return KubeError(404, "NotFound", f'{store.kind.resource.plural} "{key.name}" not found')


def _immutable_uid(store: Store, key: ObjectKey, uid: str) -> KubeError:
    message = f'{store.kind.resource.kind} "{key.name}" is invalid: metadata.uid: {uid!r}'
    cause = {"reason": "FieldValueInvalid", "field": "metadata.uid", "message": "immutable"}
    return KubeError(422, "Invalid", message, causes=(cause,))


def _check_identity(store: Store, key: ObjectKey, live: Object, changed: Object) -> None:
    meta, old = changed["metadata"], live["metadata"]
    version = meta.get("resourceVersion")
    if version not in (None, "", old["resourceVersion"]):
        message = f'{store.kind.resource.plural} "{key.name}": the object has been modified'
        raise KubeError(409, "Conflict", message)
    if meta.get("uid") not in (None, "", old["uid"]):
        raise _immutable_uid(store, key, meta["uid"])


def _check_pod_spec(key: ObjectKey, old: Object, new: Object) -> None:
    """A pod's spec is fixed but for images, added tolerations and removed scheduling gates."""

    def fixed(spec: Object) -> Object:
        rest = {k: v for k, v in spec.items() if k not in ("tolerations", "schedulingGates")}
        containers = [{**c, "image": ""} for c in spec.get("containers", ())]
        return {**rest, "containers": containers}

    added_only = all(t in new.get("tolerations", ()) for t in old.get("tolerations", ()))
    gates_removed = all(g in old.get("schedulingGates", ()) for g in new.get("schedulingGates", ()))
    if fixed(old) != fixed(new) or not added_only or not gates_removed:
        cause = {"reason": "FieldValueForbidden", "field": "spec", "message": "may not change"}
        message = f'Pod "{key.name}" is invalid: spec: Forbidden: pod updates may not change fields'
        raise KubeError(422, "Invalid", message, causes=(cause,))
