"""Writes an object that belongs to one of ours, on difference only.

The read is the cache's; an object that is as wanted costs no request. `kube.ownership` refuses to
take over a stranger's; the answer of a write enters the cache before the next plan reads it.
"""

from __future__ import annotations

from collections.abc import Callable

from pdserve.controllers.compare import covers
from pdserve.kube.cache import Cache
from pdserve.kube.client import KubeClient
from pdserve.kube.ownership import controller_of, create_or_apply, is_controlled_by
from pdserve.kube.resource import Object
from pdserve.wire import names


async def ensure(
    client: KubeClient,
    cache: Cache,
    wanted: Object,
    same: Callable[[Object, Object], bool] = covers,
) -> Object:
    """The live object, made or changed to be as `wanted` says.

    `same(live, wanted)` says that nothing need be written. The default does not see that an
    optional field is no longer wanted; kinds whose users can take fields out pass their own.

    Raises:
        NotOursError: someone else controls an object of that name.
        KubeError: the API server refused.
        ValueError: `wanted` names no controller.
    """
    controller = controller_of(wanted)
    if controller is None:
        raise ValueError(f"{wanted['kind']} {wanted['metadata']['name']}: no controller named")
    meta = wanted["metadata"]
    known = cache.get(meta["name"], meta.get("namespace") or "")
    if known is not None and is_controlled_by(known, controller["uid"]) and same(known, wanted):
        return known
    written = await create_or_apply(
        client, cache.resource, wanted, field_manager=names.FIELD_MANAGER, known=known
    )
    cache.observe(written)
    return written
