"""What a backup restores ends Ready: objects get new uids, tables are older than what was there."""

from __future__ import annotations

import json

import pytest
from tests.support.simulated_operator import make, names_of

from pdserve.controllers.shared.caches import PDSERVICES, ROCE_DOMAINS, SCENARIO_GROUPS
from pdserve.dst.api_fields import copy
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.kube.errors import KubeError
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import CONFIGMAPS, Object, Resource
from pdserve.wire import names

KINDS = (ROCE_DOMAINS, PDSERVICES, SCENARIO_GROUPS)
Backup = list[tuple[Resource, Object]]


def backup(world: World, *resources: Resource) -> Backup:
    return [(r, copy(obj)) for r in resources for obj in world.seen(r)]


def restore(world: World, saved: Backup) -> None:
    """As tools do it: everything but what the API server sets itself, owners by their old uids."""
    for resource, obj in saved:
        meta = copy({k: v for k, v in obj["metadata"].items() if k in KEPT})
        for owner in meta.get("ownerReferences", ()):
            owner["uid"] = "gone" + owner["uid"]  # the model of another cluster gives uids anew
        namespace = obj["metadata"].get("namespace", "")
        try:
            world.create(resource, {**copy(obj), "metadata": meta})
        except KubeError as error:
            assert error.reason == "AlreadyExists", error  # what is there stays
            continue
        if "status" in obj:
            body = {"status": obj["status"]}
            world.patch(resource, namespace, meta["name"], body, subresource="status")


KEPT = ("name", "namespace", "labels", "annotations", "ownerReferences")


def versions(world: World) -> dict[str, int]:
    """Of peer tables and routes, by ConfigMap."""
    found = {}
    for obj in world.seen(CONFIGMAPS):
        for key in (names.KEY_PEERS, names.KEY_ROUTES):
            if key in obj.get("data", {}):
                found[obj["metadata"]["name"]] = int(json.loads(obj["data"][key])["version"])
    return found


async def replaced(world: World) -> None:
    """One instance is lost and replaced, which makes new tables."""
    lost, size = sorted(world.routed())[0], len(world.routed())
    world.kill(lost)
    await world.until(
        lambda: lost not in world.routed() and len(world.routed()) == size, 60, "it is replaced"
    )


async def serves(world: World) -> None:
    """Ready, with exactly the instances that there are in the routes."""

    def again() -> bool:
        owner = world.existing(PDSERVICES, "shop")["metadata"]["uid"]
        owners = [
            reference["uid"]
            for group in world.seen(SCENARIO_GROUPS)
            for reference in group["metadata"]["ownerReferences"]
        ]
        there = names_of(world)
        routed = len(there) == 4 and world.routed() == there
        return owners == [owner] and routed and world.service_ready()

    await world.until(again, 900, "it serves again")


SAVED = pytest.mark.parametrize(
    "resources",
    [KINDS[:2], KINDS, (*KINDS, CONFIGMAPS)],
    ids=["what users wrote", "our own kinds too", "and tables of lower versions"],
)


@SAVED
@virtual_time
async def test_into_a_new_cluster(resources: tuple[Resource, ...]) -> None:
    world = make()
    world.create(PDSERVICES, service(prefill=(2, 2), decode=(2, 2)))
    async with world.running(), world.operator():
        await world.until(world.service_ready, 60, "PDService Ready")
        saved = backup(world, *resources)
    other = World(seed=1)
    other.nodes(["a", "b"], per_leaf=2)
    restore(other, saved)
    async with other.running(), other.operator():
        await serves(other)


@SAVED
@virtual_time
async def test_into_the_cluster_in_which_all_was_deleted(resources: tuple[Resource, ...]) -> None:
    """Pods of the services that were deleted may still end, and instances know newer tables."""
    world = make()
    world.create(PDSERVICES, service(prefill=(2, 2), decode=(2, 2)))
    async with world.running(), world.operator():
        await world.until(world.service_ready, 60, "PDService Ready")
        saved, before = backup(world, *resources), versions(world)
        for _ in range(3):
            await replaced(world)
        assert any(version > before[name] for name, version in versions(world).items())
        api = world.api
        api.handle(KubeRequest("delete", PDSERVICES, NS, "shop"))
        api.handle(KubeRequest("delete", ROCE_DOMAINS, None, "az1"))
        restore(world, saved)
        await serves(world)


@virtual_time
async def test_tables_of_lower_versions_beside_instances_that_go_on() -> None:
    """Only what users may touch was restored: peer tables and routes, by hand, from last week."""
    world = make()
    world.create(PDSERVICES, service(prefill=(2, 2), decode=(2, 2)))
    async with world.running(), world.operator():
        await world.until(world.service_ready, 60, "PDService Ready")
        saved = [
            (r, o) for r, o in backup(world, CONFIGMAPS) if o["metadata"]["name"] in versions(world)
        ]
        for _ in range(3):
            await replaced(world)
        newest = versions(world)
        for _, obj in saved:
            world.patch(CONFIGMAPS, NS, obj["metadata"]["name"], {"data": obj["data"]})
        await world.until(
            lambda: world.routed() == names_of(world), 60, "the routes name what there is"
        )
        await replaced(world)
        await serves(world)
        for name, version in versions(world).items():
            assert version > newest[name], "what instances and gateways know is outdone"
