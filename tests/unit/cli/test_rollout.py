"""`kubectl pdserve rollout` against the operator in the in-memory cluster."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

import pytest

from pdserve.cli import rollout
from pdserve.cli.revision_history import UnknownRevisionError
from pdserve.cli.snapshot import NotFoundError
from pdserve.cli.spec_patch import RefusedError
from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.dst.api_net import FakeTransport, Faults
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import CONTROLLER_REVISIONS

FIXED = {"mode": "Fixed", "fixed": {"groups": 2, "prefill": 1, "decode": 1}}


def make(scenarios: tuple[str, ...] = ("chat",), **spec: Any) -> World:
    world = World()
    world.nodes(["a", "b"], per_leaf=4)
    world.domain()
    made = service(scenarios=scenarios, devices=2, ratio=FIXED)
    made["spec"] |= spec
    world.create(PDSERVICES, made)
    return world


async def call(world: World, line: str) -> int:
    """Run one command line of `kubectl pdserve`."""
    parser, connection = argparse.ArgumentParser(), argparse.ArgumentParser(add_help=False)
    connection.add_argument("-o", "--output", default="text")
    rollout.add_parser(parser.add_subparsers(dest="command"), connection)
    arguments = parser.parse_args(["rollout", *line.split()])
    arguments.namespace = arguments.namespace or NS
    return await rollout.run(KubeClient(FakeTransport(world.api, Faults())), arguments)


def patch(world: World, **spec: Any) -> None:
    world.patch(PDSERVICES, NS, "shop", {"spec": spec})


def revisions(world: World) -> list[str]:
    """The image of each P/D group, by its prefill."""
    return sorted(
        p["spec"]["containers"][0]["image"].partition(":")[2]
        for p in world.instances()
        if "-p0-" in p["metadata"]["name"]
    )


def reason(world: World, scenario: str = "chat") -> str:
    status = world.existing(SCENARIO_GROUPS, f"shop-{scenario}").get("status", {})
    return str(next(c["reason"] for c in status["conditions"] if c["type"] == "Progressing"))


@virtual_time
async def test_a_canary_is_promoted_paused_and_undone(capsys: pytest.CaptureFixture[str]) -> None:
    world = make(rollout={"canaryGroups": 1})

    async def status() -> Any:
        await call(world, "status shop -o json")
        return json.loads(capsys.readouterr().out)[0]

    async with world.running(), world.operator():
        await world.until(world.service_ready)
        await call(world, "history shop")
        assert capsys.readouterr().out.count("wanted now") == 1
        for verb, says in (("resume", "nothing to resume"), ("undo", "no earlier revision")):
            with pytest.raises((RefusedError, UnknownRevisionError), match=says):
                await call(world, f"{verb} shop")
        patch(world, engine={"image": "pdserve/engine:next"})
        await world.until(lambda: reason(world) == "CanaryWaits", 300)
        now = await status()
        assert (now["updatedGroups"], now["readyGroups"], now["groups"]) == (1, 1, 2)
        assert world.condition(PDSERVICES, "shop", "Progressing")["reason"] == "CanaryWaits"
        await call(world, "status shop")
        assert "kubectl pdserve rollout resume shop" in capsys.readouterr().out
        # A dry run names the change and keeps nothing.
        await call(world, "undo shop --dry-run")
        assert '"pdserve/engine:next" -> "pdserve/engine:test"' in capsys.readouterr().out
        assert (await status())["phase"] == "CanaryWaits"
        await call(world, "undo shop")
        assert await call(world, "status shop --watch") == 0
        assert revisions(world) == ["test", "test"]
        # The way back and forth: the newest other one is what was undone.
        await call(world, "undo shop")
        await world.until(lambda: reason(world) == "CanaryWaits", 300)
        await call(world, "pause shop")
        with pytest.raises(RefusedError, match="paused already"):
            await call(world, "pause shop")
        await world.until(lambda: reason(world) == "RolloutPaused", 60)
        await call(world, "resume shop")
        await world.until(lambda: reason(world) == "CanaryWaits", 60)
        capsys.readouterr()
        await call(world, "resume shop -o json")
        done = json.loads(capsys.readouterr().out)
        assert done["patch"][0]["path"] == "/spec/rollout/promotedRevision"
        assert await call(world, "status shop --watch --timeout 300") == 0
        assert revisions(world) == ["next", "next"]
        capsys.readouterr()
        await call(world, "history shop -o json")
        newest, before = json.loads(capsys.readouterr().out)
        assert newest["changes"] == [
            {
                "field": "engine.image",
                "before": "pdserve/engine:test",
                "after": "pdserve/engine:next",
            }
        ]
        with pytest.raises(UnknownRevisionError, match=before["revision"]):
            await call(world, "undo shop --to-revision 0000beef")
        with pytest.raises(RefusedError, match="already"):
            await call(world, f"undo shop --to-revision {newest['revision']}")
        with pytest.raises(NotFoundError, match="there: shop"):
            await call(world, "status shoop")


@virtual_time
async def test_a_revision_that_does_not_come_up_stops_and_the_watch_ends_with_1() -> None:
    world = make(rollout={"progressDeadlineSeconds": 60})
    world.broken_images.add("pdserve/engine:bad")
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        patch(world, engine={"image": "pdserve/engine:bad"})
        assert await call(world, "status shop --watch") == 1
        assert reason(world) == "ProgressDeadlineExceeded"
        assert world.events("ProgressDeadlineExceeded")
        with pytest.raises(RefusedError, match="kubectl pdserve rollout undo shop"):
            await call(world, "resume shop")
        assert len(world.routed()) == 4
        await call(world, "undo shop")
        assert await call(world, "status shop --watch --timeout 300") == 0
        assert revisions(world) == ["test", "test"]


@pytest.mark.parametrize("together", [False, True])
@virtual_time
async def test_scenarios_roll_one_by_one_unless_they_may_roll_together(together: bool) -> None:
    rule = {"scenarios": "Together"} if together else {}
    world = make(("search", "chat"), rollout=rule)
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        patch(world, engine={"image": "pdserve/engine:next"})
        both = 0

        def rolled() -> bool:
            nonlocal both
            both += all(reason(world, s) in ("RollingOut", "Draining") for s in ("search", "chat"))
            return revisions(world) == ["next"] * 4 and world.service_ready()

        await world.until(rolled, 600)
        assert (both > 0) is together


@virtual_time
async def test_a_scenario_that_waits_for_devices_holds_no_other() -> None:
    """Three groups fill the fabric: the only one of `search` has no room for a successor."""
    world = World()
    world.nodes(["a", "b", "c"], per_leaf=2, devices=8)
    world.domain()
    made = service(scenarios=("search", "chat"), devices=8, ratio=FIXED)
    only = {"mode": "Fixed", "fixed": {"groups": 1, "prefill": 1, "decode": 1}}
    made["spec"]["scenarios"][0]["ratio"] |= only
    world.create(PDSERVICES, made)
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        patch(world, engine={"image": "pdserve/engine:next"})
        await world.until(lambda: revisions(world) == ["next", "next", "test"], 600)
        await world.until(lambda: len(world.routed()) == 6, 60)
        assert reason(world, "search") == "NeedsDevices"


@virtual_time
async def test_the_history_is_bounded_and_an_undo_finds_what_was_there() -> None:
    world = make(rollout={"paused": True})
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        for number in range(14):
            patch(world, engine={"image": f"pdserve/engine:{number}"})
            await world.until(lambda: reason(world) == "RolloutPaused", 60)
            await world.until(lambda n=number: _stored(world, n), 60)  # type: ignore[misc]
        # Ten without pods, the one that runs, and the one that is wanted.
        assert len(world.seen(CONTROLLER_REVISIONS)) == 12
        assert revisions(world) == ["test", "test"]


def _stored(world: World, number: int) -> bool:
    images = [o["data"]["engine"]["image"] for o in world.seen(CONTROLLER_REVISIONS)]
    return f"pdserve/engine:{number}" in images


@virtual_time
async def test_a_missing_right_is_named() -> None:
    world = make()

    class ReadOnly(FakeTransport):
        async def send(self, request: Any) -> Any:
            if request.verb == "patch":
                raise KubeError(403, "Forbidden", "pdservices is forbidden")
            return await super().send(request)

    async with world.running(), world.operator():
        await world.until(world.service_ready)
        arguments = argparse.Namespace(
            verb="pause", name="shop", namespace=NS, output="text", dry_run=False
        )
        with pytest.raises(RefusedError, match=r"patch pdservices\.pdserve\.io"):
            await rollout.run(KubeClient(ReadOnly(world.api, Faults())), arguments)


@virtual_time
async def test_the_time_to_progress_runs_for_each_group_alone() -> None:
    """What status remembers of the one before does not count against the next."""
    world = make(rollout={"progressDeadlineSeconds": 60, "canaryGroups": 1})

    def remembered() -> Any:
        return world.existing(SCENARIO_GROUPS, "shop-chat")["status"]["rollout"]

    async with world.running(), world.operator():
        await world.until(world.service_ready)
        patch(world, engine={"image": "pdserve/engine:next"})
        await world.until(lambda: "waitingSinceTime" in remembered(), 60)
        await world.until(lambda: reason(world) == "CanaryWaits", 300)
        assert "waitingSinceTime" not in remembered()
        await asyncio.sleep(120)
        await call(world, "resume shop")
        assert await call(world, "status shop --watch") == 0
