"""A table or a report of any version leaves a version for the next table."""

from __future__ import annotations

import asyncio
import json
from functools import partial

import pytest

from pdserve.controllers.shared.caches import PDSERVICES
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.kube.resource import CONFIGMAPS
from pdserve.wire import names
from pdserve.wire.bounds import MAX_VERSION, parse_json
from pdserve.wire.peers import PeerTable
from pdserve.wire.routes import RouteTable


@pytest.mark.invariant(10)
@pytest.mark.parametrize("version", [2**51, 2**52 + 1, 2**53 - 1, 2**53, 2**63 - 1, 2**63])
@pytest.mark.parametrize("key", [names.KEY_PEERS, names.KEY_ROUTES])
@virtual_time
async def test_a_forged_table_of_any_version_leaves_a_version_for_the_next(
    key: str, version: int
) -> None:
    """Who follows a forged version to the last one that readers take has no next table."""
    world = World()
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    world.create(PDSERVICES, service())
    async with world.running(), world.operator() as task:
        await world.until(world.service_ready, 60)
        table = next(c for c in world.seen(CONFIGMAPS) if key in c.get("data", {}))
        text = json.dumps({**json.loads(table["data"][key]), "version": version})
        world.patch(CONFIGMAPS, NS, table["metadata"]["name"], {"data": {key: text}})
        await asyncio.sleep(2)
        await repaired(world)
        written = world.get(CONFIGMAPS, table["metadata"]["name"]) or {}
        value = parse_json(written["data"][key])
        read = PeerTable if key == names.KEY_PEERS else RouteTable
        assert read.from_json(value).version < MAX_VERSION
        assert not task.done()


def newer(version: int, said: object) -> object:
    """A report whose table is at least of `version`."""
    assert isinstance(said, dict)
    return {**said, "version": max(version, said["version"])}


@pytest.mark.invariant(10)
@pytest.mark.parametrize("version", [2**51, 2**51 + 1, MAX_VERSION])
@virtual_time
async def test_an_instance_that_says_any_version_leaves_one_for_the_next(version: int) -> None:
    world = World()
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    world.create(PDSERVICES, service(prefill=(2, 2), decode=(1, 1)))
    async with world.running(), world.operator() as task:
        await world.until(world.service_ready, 60)
        (decode,) = (e for e in world.engines.by_ip.values() if "-d0-" in e.pod)
        decode.spoil = partial(newer, version)
        for n in (0, 1):  # each publishes tables, and the false value arrives after the first
            await repaired(world, next(p for p in sorted(world.routed()) if f"-p{n}-" in p))
            await asyncio.sleep(20)
        table = next(c for c in world.seen(CONFIGMAPS) if names.KEY_PEERS in c.get("data", {}))
        value = parse_json(table["data"][names.KEY_PEERS])
        assert PeerTable.from_json(value).version < MAX_VERSION
        assert not task.done()


async def repaired(world: World, victim: str = "") -> None:
    """An instance is lost; returns once another one is routed instead."""
    size, lost = len(world.routed()), victim or sorted(world.routed())[0]
    world.kill(lost)
    await world.until(lambda: lost not in world.routed(), 10, f"{lost} leaves the routes")
    await world.until(lambda: len(world.routed()) == size, 10, f"{lost} is replaced")
