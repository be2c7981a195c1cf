"""Checks of the API model on an object before it is stored, and the errors it answers."""

from __future__ import annotations

from pdserve.dst.api_kinds import Store
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import Object, ObjectKey


def is_terminating(obj: Object) -> bool:
    """Whether the object is being deleted."""
    return "deletionTimestamp" in obj["metadata"]


def substance(obj: Object) -> Object:
    """What of an object counts as a change of its generation."""
    return {k: v for k, v in obj.items() if k not in ("metadata", "status", "apiVersion", "kind")}


def not_found(store: Store, key: ObjectKey) -> KubeError:
    """The answer where there is no such object."""
    return KubeError(404, "NotFound", f'{store.kind.resource.plural} "{key.name}" not found')


def immutable_uid(store: Store, key: ObjectKey, uid: str) -> KubeError:
    """The answer to a body that names another uid."""
    message = f'{store.kind.resource.kind} "{key.name}" is invalid: metadata.uid: {uid!r}'
    cause = {"reason": "FieldValueInvalid", "field": "metadata.uid", "message": "immutable"}
    return KubeError(422, "Invalid", message, causes=(cause,))


def check_identity(store: Store, key: ObjectKey, live: Object, changed: Object) -> None:
    """Check that a body was made from the stored version, and of the same object.

    Raises:
        KubeError: 409 for another version, 422 for another uid.
    """
    meta, old = changed["metadata"], live["metadata"]
    version = meta.get("resourceVersion")
    if version not in (None, "", old["resourceVersion"]):
        message = f'{store.kind.resource.plural} "{key.name}": the object has been modified'
        raise KubeError(409, "Conflict", message)
    if meta.get("uid") not in (None, "", old["uid"]):
        raise immutable_uid(store, key, meta["uid"])


def check_pod_spec(key: ObjectKey, old: Object, new: Object) -> None:
    """Check a change of a pod's spec.

    Only images, added tolerations and removed scheduling gates may change.

    Raises:
        KubeError: 422, something else changes.
    """

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
