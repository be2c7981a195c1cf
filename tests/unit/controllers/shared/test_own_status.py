"""A reconciler's own status write is no reason to reconcile again."""

from __future__ import annotations

import asyncio

import pytest

from pdserve.controllers import worker
from pdserve.controllers.shared.caches import PDSERVICES, ROCE_DOMAINS, SCENARIO_GROUPS
from pdserve.controllers.shared.context import OperatorContext
from pdserve.controllers.shared.triggers import DOMAIN, GROUP, SERVICE
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import service
from pdserve.kube.resource import ObjectKey, Resource
from pdserve.terms.json import JsonObject


@pytest.mark.parametrize(
    ("kind", "resource"),
    [(SERVICE, PDSERVICES), (GROUP, SCENARIO_GROUPS), (DOMAIN, ROCE_DOMAINS)],
)
def test_a_status_that_was_put_right_is_looked_at_once(
    monkeypatch: pytest.MonkeyPatch, kind: str, resource: Resource
) -> None:
    passes = 0
    real = worker.RECONCILERS[kind]

    async def counting(context: OperatorContext, key: ObjectKey) -> float | None:
        nonlocal passes
        passes += 1
        return await real(context, key)

    monkeypatch.setattr(worker, "RECONCILERS", {**worker.RECONCILERS, kind: counting})

    @virtual_time
    async def play() -> None:
        nonlocal passes
        world = World()
        world.nodes(["a", "b"], per_leaf=2)
        world.domain()
        world.create(PDSERVICES, service())
        async with world.running(), world.operator():
            await world.until(world.service_ready, 120)
            await asyncio.sleep(100)
            (obj,) = world.seen(resource)
            meta = obj["metadata"]
            passes = 0
            wrong: JsonObject = {"status": {"conditions": []}}
            world.patch(
                resource, meta.get("namespace", ""), meta["name"], wrong, subresource="status"
            )
            await asyncio.sleep(2)
            (obj,) = world.seen(resource)
            assert obj["status"]["conditions"], "the status was not put right"

    play()
    assert passes == 1
