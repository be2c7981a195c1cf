"""A spec's engine type: unknown, broken, and changed to another under traffic's feet."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import engine_types as e

from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.engines import registry

FACES = {
    "pod": "from pdserve.engines.reference.pod import POD\n",
    "control": "from pdserve.engines.control import JsonControl\nCONTROL = JsonControl()\n",
}
FAILS = """
class Fails:
    def parts(self, facts):
        raise KeyError("weights")
POD = Fails()
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    directory = tmp_path / "site"
    e.package(directory, "acme_good", **FACES)
    e.package(directory, "acme_old", pod="from pdserve import nothing_of_that_name")
    e.package(directory, "acme_bad", pod=FAILS)
    e.announce(directory, {"Good": "acme_good", "Old": "acme_old", "Bad": "acme_bad"})
    e.install(monkeypatch, directory)
    yield directory
    e.uninstall(directory)


def made(**spec: Any) -> World:
    world = World(seed=0)
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    world.create(PDSERVICES, service(**spec))
    return world


def of_type(name: str) -> dict[str, Any]:
    return {"engine": {"type": name, "image": "pdserve/engine:test"}}


def said(world: World) -> tuple[str, str]:
    found = world.condition(PDSERVICES, "shop", "TemplateValid")
    return found.get("reason", ""), found.get("message", "")


def uids(world: World) -> set[str]:
    return {pod["metadata"]["uid"] for pod in world.instances()}


@pytest.mark.parametrize(
    ("name", "reason", "message"),
    [
        ("Nothing", "UnknownEngine",
         "engine.type: engine type 'Nothing' is not known here "
         "(known: Bad, Good, MindIE, Old, Reference, SGLang, vLLM, vLLM-Ascend)"),
        ("Old", "BrokenEngine", "cannot import name 'nothing_of_that_name'"),
        ("Bad", "BrokenEngine", "engine.type: 'Bad': KeyError: 'weights'"),
    ],
)  # fmt: skip
@virtual_time
async def test_a_type_that_cannot_be_used_changes_nothing_that_serves(
    site: Path, name: str, reason: str, message: str
) -> None:
    world = made()
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        before, routes = uids(world), world.routes()["scenarios"]
        world.patch(PDSERVICES, NS, "shop", {"spec": of_type(name)})
        await world.until(lambda: said(world)[0] == reason)
        assert message in said(world)[1]
        await asyncio.sleep(60)
        assert uids(world) == before
        assert world.existing(SCENARIO_GROUPS, "shop-chat")["spec"]["engine"]["type"] == "Reference"
        served = [{**g, "flow": ""} for s in world.routes()["scenarios"] for g in s["groups"]]
        assert served == [{**g, "flow": ""} for s in routes for g in s["groups"]]
        world.patch(PDSERVICES, NS, "shop", {"spec": of_type("Reference")})
        await world.until(lambda: said(world)[0] == "Accepted")
        assert uids(world) == before


@virtual_time
async def test_a_new_service_of_an_unknown_type_makes_no_pod(site: Path) -> None:
    world = made(**of_type("Nothing"))
    async with world.running(), world.operator():
        await world.until(lambda: said(world)[0] == "UnknownEngine")
        await asyncio.sleep(60)
        assert world.instances() == []
        world.patch(PDSERVICES, NS, "shop", {"spec": of_type("Good")})
        await world.until(world.service_ready)


@virtual_time
async def test_another_type_is_rolled_out_group_by_group(site: Path) -> None:
    world = made()
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        before = uids(world)
        world.patch(PDSERVICES, NS, "shop", {"spec": of_type("Good")})
        await world.until(lambda: not uids(world) & before, 600, "rolled")
        await world.until(world.service_ready)
        assert world.routes()["engine"] == "Good"
        assert registry.pod("Good") is registry.pod("Reference"), "same pods, another type"
