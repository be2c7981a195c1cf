"""Secrets are not watched: a deleted one comes back when a gateway waits for it."""

from __future__ import annotations

import asyncio

import pytest

from pdserve.controllers.shared.caches import PDSERVICES
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import SECRETS
from pdserve.wire import names

GATEWAY = "shop-gateway-0"


@pytest.mark.parametrize(
    "lost",
    [[names.request_secret_name("shop")],
     [names.request_secret_name("shop"), names.credentials_secret_name("shop")]],
    ids=["what gateways mount", "all"],
)  # fmt: skip
def test_a_new_gateway_finds_the_secret_that_was_deleted(lost: list[str]) -> None:
    @virtual_time
    async def run() -> None:
        world = World()
        world.nodes(["a"], per_leaf=2)
        world.domain()
        world.create(PDSERVICES, service())
        async with world.running(), world.operator():
            await world.until(world.service_ready, 120)
            await asyncio.sleep(20)
            before = {name: data(world, name) for name in lost}
            assert all(before.values())
            for name in lost:
                world.api.handle(KubeRequest("delete", SECRETS, NS, name))
            await asyncio.sleep(60)
            assert data(world, lost[0]) is None, "no process needed it"
            world.delete_pod(GATEWAY)
            took = await world.until(lambda: data(world, lost[0]) is not None, 30, "it is back")
            assert took < 10
            # Instances know the old ones.
            assert {name: data(world, name) for name in lost} == before
            await world.until(world.service_ready, 60)

    run()


def data(world: World, name: str) -> object:
    """The content of a Secret; None where there is none."""
    return (world.get(SECRETS, name) or {}).get("data")
