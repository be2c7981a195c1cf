"""Writes and deletes objects that belong to one of ours; writes on difference only.

The present object is read from the cache; one that is already as wanted costs no request.
`kube.ownership` refuses to take over a foreign object. The answer to a write enters the cache
before the next plan reads it.
"""

from __future__ import annotations

from collections.abc import Callable

from pdserve.desired.compare import covers
from pdserve.frozen import Frozen
from pdserve.kube.cache import Cache, ViewCache
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.held import K
from pdserve.kube.ownership import controller_of, create_or_apply, is_controlled_by
from pdserve.kube.resource import Object, key_of
from pdserve.wire import names


async def ensure(
    client: KubeClient,
    cache: Cache,
    wanted: Object,
    same: Callable[[Object, Object], bool] = covers,
    rebase: Callable[[Object], Object] | None = None,
) -> Object:
    """The live object, made or changed to be as `wanted` says.

    With `rebase`, `wanted` follows from what the cache shows: where the object has changed since,
    nothing is written and the next plan reads the change; onto one that the cache does not show
    at all goes what `rebase` makes of it.

    `same(live, wanted)` says that nothing need be written. The default does not see that an
    optional field is no longer wanted; kinds whose users can take fields out pass their own.

    Raises:
        NotOursError: another owner controls an object of that name.
        KubeError: the API server refused; `is_conflict` where the object is not as it was known.
        ValueError: `wanted` names no controller.
    """
    controller = controller_of(wanted)
    if controller is None:
        raise ValueError(f"{wanted['kind']} {wanted['metadata']['name']}: no controller named")
    meta = wanted["metadata"]
    known = cache.get(meta["name"], meta.get("namespace") or "")
    ours = known is not None and is_controlled_by(known, controller["uid"])
    if known is not None and ours and _is_same(known, wanted, same):
        return known
    try:
        written = await create_or_apply(
            client, cache.resource, wanted, field_manager=names.FIELD_MANAGER, known=known,
            rebase=rebase,
        )  # fmt: skip
    except KubeError as error:
        if rebase is not None and error.is_conflict:
            key = key_of(wanted)
            cache.observe(await client.get(cache.resource, key.name, key.namespace or None))
        raise
    cache.observe(written)
    return written


async def delete_owned(
    client: KubeClient, cache: ViewCache[K], obj: Object, grace: int | None = None
) -> None:
    """Delete this very object (by its uid); it is fine if it is gone already.

    One that has to end first (a pod's grace period, a finalizer) stays in the cache, as marked by
    the API server, until the watch shows its end.

    Args:
        client: how to reach the API server.
        cache: the cache of its kind.
        obj: `metadata` with name, namespace and uid suffices.
        grace: seconds; 0 forces a pod away without its node's word, None leaves it to the pod.

    Raises:
        KubeError: the API server refused; `is_conflict` where another object has the name.
    """
    meta = obj["metadata"]
    try:
        answer = await client.delete(
            cache.resource, meta["name"], namespace=meta.get("namespace"), uid=meta["uid"],
            grace=grace,
        )  # fmt: skip
    except KubeError as error:
        if not error.is_not_found:
            raise
        answer = {}
    told = answer.get("metadata")
    if isinstance(told, dict) and told.get("deletionTimestamp"):
        cache.observe(answer)
    else:
        cache.observe_gone(obj)


def _is_same(known: Object, wanted: Object, same: Callable[[Object, Object], bool]) -> bool:
    """`same`, asked once of one version of an object and what is still wanted of it."""
    if not isinstance(known, Frozen):
        return same(known, wanted)
    if known.derived.get(same) is not wanted:
        if not same(known, wanted):
            return False
        known.derived[same] = wanted
    return True
