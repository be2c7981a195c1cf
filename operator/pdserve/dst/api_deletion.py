"""How the API model deletes: grace, finalizers, evictions and garbage collection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pdserve.dst.api_checks import is_terminating, not_found
from pdserve.dst.api_fields import copy
from pdserve.dst.api_kinds import Store
from pdserve.dst.disruption import grant
from pdserve.kube import resource as known
from pdserve.kube.errors import KubeError
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import Object, ObjectKey

if TYPE_CHECKING:
    from pdserve.dst.api_server import FakeApi

DEFAULT_GRACE = 30
"""Seconds a pod has to end where its spec names none."""


class Deletion:
    """See the module. Acts on one API model."""

    def __init__(self, api: FakeApi) -> None:
        """`api`: whose objects it deletes."""
        self._api = api

    def evict(self, store: Store, request: KubeRequest) -> Object:
        """Delete a pod if its PodDisruptionBudget allows it now.

        Raises:
            KubeError: 404 without such a pod, 429 where the budget does not allow it.
        """
        key = ObjectKey(request.namespace or "", request.name or "")
        live = store.objects.get(key)
        if live is None:
            raise not_found(store, key)
        budgets = self._api.objects(known.POD_DISRUPTION_BUDGETS, key.namespace)
        granted = grant(budgets, live, self._api.stamp())
        if granted is not None:
            self._api.budget_status(*granted)
        self.delete(store, key, live, KubeRequest("delete", known.PODS, key.namespace, key.name))
        return {"kind": "Status", "status": "Success"}

    def delete(self, store: Store, key: ObjectKey, live: Object, request: KubeRequest) -> Object:
        """DELETE as a client sends it, with its preconditions, grace and propagation policy.

        Raises:
            KubeError: 409 where a precondition does not hold.
        """
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
        if policy in hold and hold[policy] not in finalizers and not is_terminating(live):
            finalizers.append(hold[policy])
        grace = self._grace(store, live, options.get("gracePeriodSeconds"))
        if grace == 0 and not finalizers:
            gone = copy(live)
            if store.kind.resource == known.PODS:
                gone["metadata"] |= self._mark(0)
            return self._deleted(store, self._api.remove(store, key, gone))
        if is_terminating(live) and grace >= meta.get("deletionGracePeriodSeconds", 0):
            return live
        marked = copy(live)
        marked["metadata"] |= self._mark(grace)
        if finalizers:
            marked["metadata"]["finalizers"] = finalizers
        if store.kind.generation:
            marked["metadata"]["generation"] = meta.get("generation", 0) + 1
        return self._api.commit(store, key, "MODIFIED", live, marked)

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
        return {"deletionTimestamp": self._api.stamp(grace), "deletionGracePeriodSeconds": grace}

    @staticmethod
    def _deleted(store: Store, gone: Object) -> Object:
        """What DELETE answers when the object is gone at once."""
        if store.kind.resource == known.PODS:
            return gone
        meta, plural = gone["metadata"], store.kind.resource.plural
        details = {"name": meta["name"], "kind": plural, "uid": meta["uid"]}
        return {"kind": "Status", "metadata": {}, "status": "Success", "details": details}

    def collect_garbage(self) -> int:
        """Run one round of the garbage collector; returns how many objects it acted on."""
        live = {o["metadata"]["uid"] for s in self._api.stores.values() for o in s.objects.values()}
        if not any(_may_go(o, live) for s in self._api.stores.values() for o in s.objects.values()):
            return 0
        acted = 0
        for store in self._api.stores.values():
            for key in sorted(store.objects):
                obj = store.objects[key]
                if _is_orphan(obj, live):
                    acted += not is_terminating(obj)
                    self.delete(store, key, obj, KubeRequest("delete", store.kind.resource))
                elif is_terminating(obj):
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
                self._api.commit(other, place, "MODIFIED", dependent, kept)
            else:
                resource = other.kind.resource
                self.delete(other, place, dependent, KubeRequest("delete", resource))
                waiting |= place in other.objects
        if waiting:
            return 0
        freed = copy(obj)
        left_over = [f for f in finalizers if f not in ("orphan", "foregroundDeletion")]
        freed["metadata"]["finalizers"] = left_over
        if left_over:
            self._api.commit(store, key, "MODIFIED", obj, freed)
        else:
            self._api.remove(store, key, freed)
        return 1

    def _dependents(self, uid: str) -> Iterator[tuple[Store, ObjectKey, Object]]:
        for store in self._api.stores.values():
            for key in sorted(store.objects):
                owners = store.objects[key]["metadata"].get("ownerReferences") or []
                if any(owner["uid"] == uid for owner in owners):
                    yield store, key, store.objects[key]


def _is_orphan(obj: Object, live: set[str]) -> bool:
    owners = obj["metadata"].get("ownerReferences")
    return bool(owners) and not any(owner["uid"] in live for owner in owners)


def _may_go(obj: Object, live: set[str]) -> bool:
    return "deletionTimestamp" in obj["metadata"] or _is_orphan(obj, live)
