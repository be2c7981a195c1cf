"""Create and apply objects that belong to one of ours, and never take a foreign one.

Server-side apply onto an existing object of that name succeeds, merges, and would add our
ownerReference to it, so that garbage collection later deletes what a user made. Hence: POST, and
apply only onto the object that is known, by controller uid, to be ours. Used by `controllers`;
pods are only ever POSTed and patched, never applied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import Object, Resource, key_of


class NotOursError(Exception):
    """An object of the wanted name exists and another owner controls it (or none does)."""

    def __init__(self, resource: Resource, obj: Object, wanted_owner: str) -> None:
        owner = controller_of(obj)
        whose = (
            f"is controlled by {owner['kind']} {owner['name']}" if owner else "has no controller"
        )
        super().__init__(
            f"{resource.kind} {key_of(obj)} exists and {whose}, not uid {wanted_owner}: "
            "delete or rename it, it will not be taken over"
        )
        self.resource = resource
        self.object = obj


def owner_reference(owner: Object, *, block_deletion: bool = True) -> Object:
    """The controller reference to `owner`, for `metadata.ownerReferences` of what it makes."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": block_deletion,
    }


def controller_of(obj: Object) -> Object | None:
    """The owner reference marked as controller, if any."""
    for reference in obj["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            found: Object = reference
            return found
    return None


def is_controlled_by(obj: Object, owner_uid: str) -> bool:
    """Whether the controller of `obj` is the object with that uid."""
    controller = controller_of(obj)
    return controller is not None and controller["uid"] == owner_uid


async def create_or_apply(
    client: KubeClient,
    resource: Resource,
    obj: Object,
    *,
    field_manager: str,
    known: Object | None,
    rebase: Callable[[Object], Object] | None = None,
) -> Object:
    """Make the cluster's object be as `obj` says, if it is ours or does not exist yet.

    With `rebase`, `obj` follows from what is known, so it is written onto that very state only;
    onto an object that had to be read first goes what `rebase` makes of it.

    1. `known` (what the cache holds, or None) is not there: POST. The name is taken after all:
       read it and go on with that.
    2. It has another controller than `obj` names: refuse.
    3. Apply with its uid, so that a namesake made meanwhile is not touched.
    4. The first apply after a POST finds the fields owned twice, by the POST as an "Update" and
       by the apply, so that a field left out later would stay: hand the first share over to the
       second, and apply again. (Once per object; what client-go calls csaupgrade.)

    Raises:
        NotOursError: see 2.
        KubeError: `is_conflict` when the object was replaced, or with `rebase` changed,
            meanwhile: look again.
        ValueError: `obj` names no controller.
    """
    controller = controller_of(obj)
    if controller is None:
        raise ValueError(f"{resource.kind} {key_of(obj)}: ownerReferences name no controller")
    if known is None:
        try:
            return await client.create(resource, obj, field_manager=field_manager)
        except KubeError as error:
            if not error.is_already_exists:
                raise
        key = key_of(obj)
        known = await client.get(resource, key.name, key.namespace or None)
        if rebase is not None and is_controlled_by(known, controller["uid"]):
            obj = rebase(known)
    if not is_controlled_by(known, controller["uid"]):
        raise NotOursError(resource, known, controller["uid"])

    async def apply(onto: Object) -> Object:
        meta = onto["metadata"]
        version = None if rebase is None else meta["resourceVersion"]
        return await client.apply(
            resource, obj, field_manager=field_manager, uid=meta["uid"], resource_version=version
        )

    applied = await apply(known)
    taken = await _take_over_fields(client, resource, applied, field_manager)
    return applied if taken is None else await apply(taken)


async def _take_over_fields(
    client: KubeClient, resource: Resource, obj: Object, manager: str
) -> Object | None:
    """Move what `manager` owns by POST or PUT to its apply entry; None if there is nothing."""
    entries = obj["metadata"].get("managedFields") or []
    updates = [e for e in entries if _is(e, manager, "Update")]
    if not updates:
        return None
    merged: Object = {}
    for entry in updates:
        merged = _union(merged, entry["fieldsV1"])
    kept = []
    for entry in entries:
        if _is(entry, manager, "Apply"):
            kept.append({**entry, "fieldsV1": _union(entry["fieldsV1"], merged)})
        elif entry not in updates:
            kept.append(entry)
    meta = obj["metadata"]
    return await client.patch_json(
        resource,
        meta["name"],
        [
            {"op": "test", "path": "/metadata/resourceVersion", "value": meta["resourceVersion"]},
            {"op": "replace", "path": "/metadata/managedFields", "value": kept},
        ],
        namespace=meta.get("namespace"),
        uid=meta["uid"],
        field_manager=manager,
    )


def _is(entry: Mapping[str, object], manager: str, operation: str) -> bool:
    return (
        entry.get("manager") == manager
        and entry.get("operation") == operation
        and not entry.get("subresource")
    )


def _union(one: Object, other: Object) -> Object:
    both = dict(one)
    for key, value in other.items():
        both[key] = _union(both[key], value) if key in both else value
    return both
