"""The route table names the gateways that are ready, for limits that they share."""

from __future__ import annotations

from tests.unit.controllers.test_ownership_and_counts import make

from pdserve.controllers.shared.caches import PDSERVICES
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.kube.resource import PODS


def listed(world: World) -> list[str]:
    return [g["id"] for g in world.routes().get("gateways", [])]


def gateways(world: World, count: int) -> list[str]:
    """Names of the gateway pods, the oldest first."""
    pods = [world.existing(PODS, f"shop-gateway-{n}") for n in range(count)]
    pods.sort(key=lambda p: (p["metadata"]["creationTimestamp"], p["metadata"]["name"]))
    return [p["metadata"]["name"] for p in pods]


@virtual_time
async def test_the_list_follows_the_gateways() -> None:
    world = make()
    world.create(PDSERVICES, service(devices=2))

    def want(replicas: int) -> None:
        world.patch(PDSERVICES, NS, "shop", {"spec": {"gateway": {"replicas": replicas}}})

    async with world.running(), world.operator():
        await world.until(world.service_ready)
        assert listed(world) == [], "one gateway shares with none"
        want(3)
        await world.until(lambda: len(listed(world)) == 3)
        assert listed(world) == gateways(world, 3)
        first = listed(world)[0]
        for gateway in world.routes()["gateways"]:
            assert gateway["endpoint"].endswith(":9090")
        world.delete_pod(first, NS)
        await world.until(lambda: len(listed(world)) == 3 and listed(world)[0] != first)
        assert listed(world)[-1] == first, "its successor of the same name is the newest"
        want(1)
        await world.until(lambda: listed(world) == [])
