"""Templates of revisions in use are kept: old groups are repaired as they were."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
from tests.support.world_state import unrouted

from pdserve.api import ScenarioGroup, revision_of
from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.controllers.shared.revisions import revision_object
from pdserve.dst.machinery import Machinery
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.forwarding.match import match_scenario, parts_of
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import CONTROLLER_REVISIONS, PODS
from pdserve.wire.routes import RouteTable

BAD = "pdserve/engine:bad"
GROUPS = {"mode": "Fixed", "fixed": {"groups": 3, "prefill": 1, "decode": 1}}


class BadImageMachinery(Machinery):
    """Pods of the bad image end as soon as they run."""

    def probe(self, pod: dict[str, Any]) -> None:
        if image(pod) == BAD:
            self.world.crashing.add(pod["metadata"]["name"])
        super().probe(pod)


def image(pod: dict[str, Any]) -> str:
    return str(pod["spec"]["containers"][0]["image"])


def make(**spec: Any) -> World:
    world = World()
    world.machinery = BadImageMachinery(world)
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    world.create(PDSERVICES, service(devices=2, ratio=GROUPS, **spec))
    return world


def stored(world: World) -> set[str]:
    return {o["metadata"]["name"] for o in world.seen(CONTROLLER_REVISIONS)}


def roll_to(world: World, image_: str) -> None:
    world.patch(PDSERVICES, NS, "shop", {"spec": {"engine": {"image": image_}}})


def revisions(world: World) -> set[str]:
    return {p["metadata"]["labels"]["pdserve.io/revision"] for p in world.instances()}


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("namespace", [None, NS])
def test_old_groups_are_repaired_at_their_revision_while_a_bad_one_is_tried(
    restarted: bool, namespace: str | None
) -> None:
    @virtual_time
    async def run() -> None:
        world = make()
        async with world.running():
            async with world.operator(namespace=namespace):
                await world.until(world.service_ready)
                (old,) = revisions(world)
                roll_to(world, BAD)
                await world.until(lambda: len(stored(world)) == 2, 20)
                if not restarted:
                    await faults(world, old)
            if restarted:
                async with world.operator(namespace=namespace):
                    await faults(world, old)

    async def faults(world: World, old: str) -> None:
        good = {p["metadata"]["name"] for p in world.instances() if image(p) != BAD}
        for name in sorted(good):
            if name not in world.routed():
                continue
            world.kill(name)
            await world.until(partial(unrouted, world, name), 20)
            await world.until(lambda: len(world.routed()) == 6, 60, f"after the loss of {name}")
        mended = {p["metadata"]["name"] for p in world.instances() if image(p) != BAD}
        assert not mended & good
        assert {g["revision"] for s in world.routes()["scenarios"] for g in s["groups"]} == {old}
        assert {image(world.existing(PODS, n)) for n in world.routed()} == {"pdserve/engine:test"}
        # A good one ends it; what no pod needs is history.
        roll_to(world, "pdserve/engine:good")
        await world.until(
            lambda: (
                {image(p) for p in world.instances()} == {"pdserve/engine:good"}
                and world.service_ready()
            ),
            900,
            "rolled",
        )
        await world.until(lambda: len(stored(world)) == 3, 30)

    run()


@virtual_time
async def test_a_group_of_an_older_operator_gets_its_first_revision_and_is_not_rolled() -> None:
    world = make()
    async with world.running():
        async with world.operator():
            await world.until(world.service_ready)
        for obj in list(world.seen(CONTROLLER_REVISIONS)):
            world.api.handle(
                KubeRequest("delete", CONTROLLER_REVISIONS, NS, obj["metadata"]["name"])
            )
        before = {p["metadata"]["uid"] for p in world.instances()}
        async with world.operator():
            await world.until(lambda: len(stored(world)) == 1, 20)
            await asyncio.sleep(60)
        assert {p["metadata"]["uid"] for p in world.instances()} == before


@virtual_time
async def test_a_revision_is_accepted_only_when_it_has_the_hash_of_its_name() -> None:
    world = make()
    async with world.running():
        async with world.operator():
            await world.until(world.service_ready)
            roll_to(world, BAD)
            await world.until(lambda: len(stored(world)) == 2, 20)
        group = ScenarioGroup.parse(world.get(SCENARIO_GROUPS, "shop-chat"))
        former = f"shop-chat-{(revisions(world) - {revision_of(group.spec)}).pop()}"
        data = json.loads(json.dumps(world.existing(CONTROLLER_REVISIONS, former)["data"]))
        data["engine"]["image"] = "other/engine:1"
        world.patch(CONTROLLER_REVISIONS, NS, former, {"data": data})
        async with world.operator() as task:
            world.kill(sorted(world.routed())[0])
            await asyncio.sleep(60)
            assert not task.done()
        assert not any(image(p) == "other/engine:1" for p in world.instances())


@pytest.mark.invariant(9)
@virtual_time
async def test_a_foreign_object_in_the_place_of_a_revision_is_left_and_told() -> None:
    world = make()
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        (name,) = stored(world)
        world.api.handle(KubeRequest("delete", CONTROLLER_REVISIONS, NS, name))
        theirs = {
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": {
                "name": name,
                "namespace": NS,
                "labels": {"app.kubernetes.io/managed-by": "pdserve"},
            },
            "revision": 1,
        }
        theirs = world.create(CONTROLLER_REVISIONS, theirs)
        await asyncio.sleep(30)
        assert world.get(CONTROLLER_REVISIONS, name) == theirs
        assert world.events("ObjectRefused")
        assert world.service_ready()


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("devices", [2, 8], ids=["room for one group more", "no spare devices"])
def test_a_rename_serves_the_old_name_until_the_new_one_is_served(
    devices: int, restarts: bool
) -> None:
    """Engines start for 60 s; every moment's route table is asked what a gateway would be."""

    def takes(world: World, model: str) -> bool:
        table = RouteTable.from_json(world.routes())
        scenario = match_scenario(table, model, {})
        if scenario is None:
            return False
        parts = [p for p in parts_of(table, scenario) if model in p.served.names]
        return any(p.scenario.groups and p.served.model == model for p in parts)

    @virtual_time
    async def run() -> None:
        world = World(start_seconds=(60.0, 61.0))
        world.nodes(["a", "b"], per_leaf=2)
        world.domain()
        two = {"mode": "Fixed", "fixed": {"groups": 2, "prefill": 1, "decode": 1}}
        world.create(PDSERVICES, service(devices=devices, ratio=two))
        async with world.running(), AsyncExitStack() as stack:
            await stack.enter_async_context(world.operator())
            await world.until(world.service_ready, 200)
            world.patch(PDSERVICES, NS, "shop", {"spec": {"model": {"name": "next"}}})
            new_served = False
            for tick in range(12_000):
                await asyncio.sleep(0.05)
                new_served = new_served or takes(world, "next")
                assert takes(world, "next" if new_served else "tiny")
                if restarts and tick == 600:
                    await stack.aclose()
                    await stack.enter_async_context(world.operator())
            assert new_served
            assert world.service_ready()
            assert not takes(world, "tiny")

    run()


def test_what_is_stored_has_the_revision_of_what_it_was_made_from() -> None:
    spec = service()["spec"]
    spec = {k: spec[k] for k in ("model", "engine", "prefill", "decode", "fabric")}
    spec["prefill"] |= {"replicas": 2, "template": {"metadata": {"labels": {"a": "b"}}}}
    group = ScenarioGroup.parse(
        {
            "apiVersion": "pdserve.io/v1alpha1",
            "kind": "ScenarioGroup",
            "metadata": {"name": "shop-chat", "namespace": NS, "generation": 3},
            "spec": {**spec, "service": "shop", "scenario": "chat"},
        }
    )
    made = revision_object(group, {"uid": "u", "controller": True})
    assert made["metadata"]["name"] == f"shop-chat-{revision_of(group.spec)}"
    assert "replicas" not in made["data"]["prefill"]
    read = type(group.spec).parse(made["data"])
    assert revision_of(read) == revision_of(group.spec)
