"""K7.6: Names made of names: long ones, and two services whose scenarios get the same."""

from __future__ import annotations

import asyncio
from typing import Any

from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.kube.request import KubeRequest


def make() -> World:
    world = World()
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    return world


def groups(world: World) -> dict[tuple[str, str], str]:
    """Names of the ScenarioGroups, by service and scenario."""
    seen = world.seen(SCENARIO_GROUPS)
    return {(g["spec"]["service"], g["spec"]["scenario"]): g["metadata"]["name"] for g in seen}


def small(name: str, scenario: str) -> dict[str, Any]:
    return service(name, (scenario,), devices=1)


@virtual_time
async def test_the_longest_names_serve_with_eleven_groups() -> None:
    world = make()
    name, scenario = "production-recommendations-cha", "interactive-assistan"
    eleven = {"mode": "Fixed", "fixed": {"groups": 11, "prefill": 1, "decode": 1}}
    world.create(PDSERVICES, service(name, (scenario,), devices=1, groups=(1, 16), ratio=eleven))
    async with world.running(), world.operator():
        await world.until(lambda: world.service_ready(name), 120)
        assert max(len(p["metadata"]["name"]) for p in world.instances()) <= 63
        assert len(world.routed(name)) == 22
        victim = sorted(n for n in world.routed(name) if "-10-" in n)[0]
        world.kill(victim)
        await world.until(lambda: victim not in world.routed(name), 10)
        await world.until(lambda: len(world.routed(name)) == 22, 30, "repaired")


@virtual_time
async def test_two_services_whose_scenarios_get_one_name_both_serve() -> None:
    world = make()
    world.create(PDSERVICES, small("a-b", "c"))
    async with world.running():
        async with world.operator():
            await world.until(lambda: world.service_ready("a-b"))
            assert groups(world) == {("a-b", "c"): "a-b-c"}
            world.create(PDSERVICES, small("a", "b-c"))
            await world.until(lambda: world.service_ready("a"), 60)
            both = groups(world)
            assert both["a-b", "c"] == "a-b-c"
            assert both["a", "b-c"].startswith("a-b-c-")
            assert world.condition(PDSERVICES, "a", "Degraded")["status"] == "False"
        # A restart keeps the names, also when the first of them has gone.
        world.api.handle(KubeRequest("delete", PDSERVICES, NS, "a-b"))
        pods = {p["metadata"]["uid"] for p in world.instances() if "b-c" in _scenario(p)}
        async with world.operator():
            await asyncio.sleep(60)
            assert groups(world) == {("a", "b-c"): both["a", "b-c"]}
            assert {p["metadata"]["uid"] for p in world.instances()} == pods


@virtual_time
async def test_two_such_services_applied_at_once_both_serve() -> None:
    world = make()
    async with world.running(), world.operator():
        await asyncio.sleep(1)
        world.create(PDSERVICES, small("a-b", "c"))
        world.create(PDSERVICES, small("a", "b-c"))
        await world.until(lambda: world.service_ready("a") and world.service_ready("a-b"), 90)
        assert len(set(groups(world).values())) == 2


def _scenario(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["labels"]["pdserve.io/scenario"])
