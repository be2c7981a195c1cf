"""The operator keeps instances of two pods each."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.dst.virtual_time import run_virtual
from pdserve.dst.world import World
from pdserve.dst.world_engines import Engines, SimulatedEngine
from pdserve.dst.world_service import NS, service
from pdserve.kube.errors import KubeError
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import PODS, Object
from pdserve.wire import names
from pdserve.wire.names import instance_name

FIXED = {"mode": "Fixed", "fixed": {"groups": 1, "prefill": 1, "decode": 1}}


class FollowingEngines(Engines):
    """Another member is ready when its leader is."""

    def ready(self, engine: SimulatedEngine) -> bool:
        leader = instance_name(engine.pod)
        return any(super(FollowingEngines, self).ready(e) for e in self.by_ip.values()
                   if e.pod == leader)  # fmt: skip


def two_pods(ratio: dict[str, Any]) -> Object:
    """A PDService whose instances have two pods of eight devices each."""
    made = service(devices=8, ratio=ratio)
    for role in ("prefill", "decode"):
        made["spec"][role]["instance"]["nodes"] = 2
    return made


def make() -> World:
    world = World()
    world.engines = FollowingEngines()
    world.nodes(["a", "b"], per_leaf=6)
    world.domain()
    world.create(PDSERVICES, two_pods(FIXED))
    return world


def pods(world: World, role: str = "") -> dict[str, Object]:
    """Pods of a role by name, those not being deleted."""
    return {
        p["metadata"]["name"]: p
        for p in world.instances()
        if p["metadata"]["labels"]["pdserve.io/role"].startswith(role)
        and "deletionTimestamp" not in p["metadata"]
    }


def leaders(found: Mapping[str, Object]) -> set[str]:
    return {name for name in found if name == instance_name(name)}


def whole(world: World) -> bool:
    """Two instances of two pods each, all routed by their leaders."""
    found = pods(world)
    served = world.routed() == leaders(found) and len(leaders(found)) == 2
    return world.service_ready() and served and len(found) == len(list(world.instances())) == 4


@pytest.mark.parametrize("member", [0, 1])
@pytest.mark.parametrize("restarted", [False, True])
def test_an_instance_of_two_pods_is_served_repaired_and_kept(member: int, restarted: bool) -> None:
    async def run() -> None:
        world = make()
        async with world.running():
            async with world.operator():
                await world.until(lambda: whole(world))
                before = pods(world, "prefill")
                others = {p["metadata"]["uid"] for p in pods(world, "decode").values()}
                (table,) = (t for t in world.routes()["scenarios"][0]["groups"])
                assert {i["id"] for i in table["instances"]} == leaders(pods(world))
                if not restarted:
                    world.delete_pod(sorted(before)[member])
                    await world.until(lambda: not before.keys() & pods(world).keys(), 60)
                    await world.until(lambda: whole(world), 60)
            if restarted:
                world.delete_pod(sorted(before)[member])
                await asyncio.sleep(40)
                async with world.operator():
                    await world.until(lambda: not before.keys() & pods(world).keys(), 60)
                    await world.until(lambda: whole(world), 60)
            after = pods(world, "prefill").values()
            leader = before[min(before)]["metadata"]["uid"]
            assert {p["metadata"]["annotations"]["pdserve.io/replaces"] for p in after} == {leader}
            assert {p["metadata"]["uid"] for p in pods(world, "decode").values()} == others
            assert world.existing(SCENARIO_GROUPS, "shop-chat")["status"].get("claims", []) == []

    run_virtual(run())


def test_where_a_member_is_refused_none_of_its_instance_is_left() -> None:
    async def run() -> None:
        world = make()
        handle = world.api.handle
        refused: list[str] = []

        def guarded(request: KubeRequest) -> Object:
            made = request.verb == "create" and request.resource == PODS
            if made and "dryRun" not in request.query and isinstance(request.body, dict):
                name = request.body["metadata"]["name"]
                if name != instance_name(name):
                    refused.append(name)
                    raise KubeError(403, "Forbidden", "exceeded quota: small")
            return handle(request)

        async with world.running(), world.operator():
            world.api.handle = guarded  # type: ignore[method-assign]
            await world.until(lambda: bool(refused))
            await world.until(lambda: list(world.instances()) == [])
            found = world.condition(SCENARIO_GROUPS, "shop-chat", "Placed")
            assert found["reason"] == "CreateRefused"
            world.api.handle = handle  # type: ignore[method-assign]
            await world.until(lambda: whole(world), 300)

    run_virtual(run())


def test_a_scale_down_drains_and_deletes_both_members() -> None:
    async def run() -> None:
        world = make()
        async with world.running(), world.operator():
            await world.until(lambda: whole(world))
            more = {"mode": "Fixed", "fixed": {"groups": 1, "prefill": 1, "decode": 2}}
            spec = {"spec": {"scenarios": service(devices=8, ratio=more)["spec"]["scenarios"]}}
            world.patch(PDSERVICES, NS, "shop", spec)
            await world.until(lambda: len(world.routed()) == 3 and len(pods(world)) == 6)
            less = {"spec": {"scenarios": service(devices=8, ratio=FIXED)["spec"]["scenarios"]}}
            world.patch(PDSERVICES, NS, "shop", less)
            await world.until(lambda: whole(world))
            assert {instance_name(name) for name in world.engines.drained} == set(
                world.engines.drained
            )

    run_virtual(run())


def test_credentials_rotate_for_every_member() -> None:
    async def run() -> None:
        world = make()
        async with world.running(), world.operator():
            await world.until(lambda: whole(world))
            before = {p["metadata"]["uid"] for p in world.instances()}
            asked = {"metadata": {"annotations": {names.ANNOTATION_ROTATE: "1"}}}
            world.patch(PDSERVICES, NS, "shop", asked)
            await world.until(
                lambda: (
                    world.condition(PDSERVICES, "shop", "CredentialsRotated").get("status")
                    == "True"
                ),
                600,
            )
            await world.until(lambda: whole(world))
            assert {p["metadata"]["uid"] for p in world.instances()} == before

    run_virtual(run())
