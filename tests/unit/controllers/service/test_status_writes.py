"""A PDService's own status write causes no pass, but loses no change that comes with its answer."""

from __future__ import annotations

import asyncio

import pytest

from pdserve.controllers.shared.caches import PDSERVICES
from pdserve.dst.api_net import Faults
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import DEPLOYMENTS


@pytest.mark.invariant(10)
@virtual_time
async def test_a_change_that_the_answer_of_a_status_write_carries_is_acted_on() -> None:
    world = World()
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    world.create(PDSERVICES, service())
    edits = 0

    def user_is_faster(request: KubeRequest) -> float:
        nonlocal edits
        if armed and request.resource == PDSERVICES and request.subresource == "status":
            armed.clear()
            edits += 1
            world.patch(PDSERVICES, NS, "shop", {"spec": {"gateway": {"replicas": 3}}})
        return 0.0

    def replicas_are_three() -> bool:
        return [d["spec"]["replicas"] for d in world.seen(DEPLOYMENTS)] == [3]

    armed: list[bool] = []
    world.delay = user_is_faster
    # The watch tells the change after the answer of the status write has brought it.
    async with world.running(), world.operator(Faults(watch_delay=(2.0, 2.0))):
        await world.until(world.service_ready, 120)
        await asyncio.sleep(60)
        armed.append(True)
        world.patch(PDSERVICES, NS, "shop", {"status": {"conditions": []}}, subresource="status")
        await world.until(replicas_are_three, 60, "the change is acted on")
    assert edits == 1
