"""`kubectl pdserve approve | reject | undo` against the operator in the in-memory cluster."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

import pytest
from tests.unit.controllers.ratio.test_ratio_loop import (
    FAST,
    Scripted,
    counts,
    decisions,
    make,
    prefill_short,
)

from pdserve.cli import approval
from pdserve.cli.snapshot import read_services
from pdserve.cli.spec_patch import RefusedError
from pdserve.cli.view_status import render
from pdserve.controllers.shared import event_reasons as reasons
from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.dst.api_net import FakeTransport, Faults
from pdserve.dst.moments import now
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS
from pdserve.kube.client import KubeClient
from pdserve.kube.resource import EVENTS


@pytest.fixture(autouse=True)
def virtual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's clock is that of the world."""
    monkeypatch.setattr(time, "time", now)


def client_of(world: World) -> KubeClient:
    return KubeClient(FakeTransport(world.api, Faults()))


async def call(world: World, line: str) -> int:
    parser, connection = argparse.ArgumentParser(), argparse.ArgumentParser(add_help=False)
    connection.add_argument("-o", "--output", default="text")
    approval.add_parsers(parser.add_subparsers(dest="command"), connection)
    arguments = parser.parse_args(line.split())
    arguments.namespace = arguments.namespace or NS
    return await approval.run(client_of(world), arguments)


def proposal(world: World) -> dict[str, Any] | None:
    found = world.existing(SCENARIO_GROUPS, "shop-chat").get("status", {}).get("proposal")
    return None if found is None else dict(found)


def told(world: World) -> list[str]:
    return [e["reason"] for e in world.seen(EVENTS)]


def scenario_of(world: World) -> dict[str, Any]:
    return dict(world.existing(PDSERVICES, "shop")["spec"]["scenarios"][0])


@virtual_time
async def test_a_change_waits_is_shown_and_is_made_once_approved(
    capsys: pytest.CaptureFixture[str],
) -> None:
    world, source = make(ratio={"mode": "Approve"}), Scripted()
    async with world.running(), world.operator(source=source, settings=FAST):
        await world.until(world.service_ready)
        before = counts(world)
        with pytest.raises(RefusedError, match="nothing waits"):
            await call(world, "approve shop chat")
        source.say = prefill_short
        await world.until(lambda: proposal(world) is not None, 180, "a proposal")
        await asyncio.sleep(120)
        assert counts(world) == before, "it waits"
        waits = proposal(world)
        assert waits is not None
        waiting = world.condition(PDSERVICES, "shop", "ApprovalPending")
        assert waiting["status"] == "True"
        assert waits["id"] in waiting["message"]
        assert reasons.PROPOSED in told(world)
        (found,) = await read_services(client_of(world), NS, "shop")
        screen = render(found, now())
        assert f"{waits['id']}: " in screen
        assert "kubectl pdserve approve shop chat" in screen
        with pytest.raises(RefusedError, match="is over; now"):
            await call(world, "approve shop chat --proposal 00000000")
        await call(world, "approve shop chat --dry-run")
        assert "answer" not in scenario_of(world)["ratio"]
        await call(world, "approve shop chat -o json")
        await world.until(lambda: counts(world) != before, 60, "the change")
        assert dict(zip(("groups", "prefill", "decode"), counts(world), strict=True)) == waits["to"]
        applied = [d for d in decisions(world) if d["outcome"] == "Applied"][-1]
        assert applied["message"].startswith(f"approved ({waits['id']})")
        assert proposal(world) is None
        await world.until(
            lambda: world.condition(PDSERVICES, "shop", "ApprovalPending")["status"] == "False", 30
        )
    said = capsys.readouterr().out
    assert "is approved" in said
    assert json.loads(said[said.index("{") :])["patch"][0]["value"]["verdict"] == "Approve"


@virtual_time
async def test_a_rejected_change_is_not_made_and_an_unanswered_one_expires() -> None:
    ratio = {"mode": "Approve", "approvalSeconds": 120}
    world, source = make(ratio=ratio), Scripted()
    async with world.running(), world.operator(source=source, settings=FAST):
        await world.until(world.service_ready)
        before = counts(world)
        source.say = prefill_short
        await world.until(lambda: proposal(world) is not None, 180, "a proposal")
        first = proposal(world)
        assert first is not None
        await world.until(lambda: (proposal(world) or first)["id"] != first["id"], 200, "another")
        assert reasons.WITHDRAWN in told(world)
        await call(world, "reject shop chat")
        await world.until(lambda: bool((proposal(world) or {}).get("rejected")), 30, "rejected")
        assert reasons.REJECTED in told(world)
        with pytest.raises(RefusedError, match="rejected already"):
            await call(world, "approve shop chat")
        await world.until(lambda: not (proposal(world) or {}).get("rejected"), 200, "it is over")
        assert counts(world) == before


@virtual_time
async def test_undo_sets_the_counts_before_the_last_change_and_holds_them() -> None:
    world, source = make(), Scripted()
    async with world.running(), world.operator(source=source, settings=FAST):
        await world.until(world.service_ready)
        with pytest.raises(RefusedError, match="no change"):
            await call(world, "undo shop chat")
        source.say = prefill_short
        first = counts(world)
        await world.until(lambda: counts(world) != first, 300, "a change")
        await asyncio.sleep(1)
        last = [d for d in decisions(world) if d["outcome"] == "Applied"][-1]
        with pytest.raises(RefusedError, match="want 1 to"):
            await call(world, "undo shop chat --minutes nan")
        await call(world, "undo shop chat --minutes 20")
        back = tuple(last["from"][part] for part in ("groups", "prefill", "decode"))
        await world.until(lambda: counts(world) == back, 60, "the counts before")
        await asyncio.sleep(900)
        assert counts(world) == back, "requests miss, and the person's word counts"
        assert decisions(world)[-1]["reason"] == "OnHold"
        await world.until(lambda: counts(world) != back, 600, "the loop goes on after its time")


@virtual_time
async def test_a_hold_can_be_ended() -> None:
    until = "2026-06-01T00:00:00Z"
    held = {"until": until, "counts": {"groups": 1, "prefill": 2, "decode": 1}}
    world, source = make(ratio={"hold": held}), Scripted()
    source.say = prefill_short
    async with world.running(), world.operator(source=source, settings=FAST):
        await world.until(lambda: bool(world.routed()) and counts(world) == (1, 2, 1), 300, "held")
        await call(world, "undo shop chat --end")
        assert "hold" not in scenario_of(world)["ratio"]
        await world.until(lambda: counts(world) != (1, 2, 1), 300, "the loop goes on")
        with pytest.raises(RefusedError, match="are not held"):
            await call(world, "undo shop chat --end")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("approve shop chat", "ratio mode of chat is Fixed, not Approve"),
        ("undo shop chat", "ratio mode of chat is Fixed: set the counts there"),
        ("reject shop other", "no scenario 'other'; scenarios: chat"),
    ],
)
def test_what_makes_no_sense_is_refused(line: str, says: str) -> None:
    @virtual_time
    async def check() -> None:
        fixed = {"mode": "Fixed", "fixed": {"groups": 1, "prefill": 1, "decode": 1}}
        world = make(ratio=fixed)
        async with world.running(), world.operator():
            await world.until(world.service_ready)
            with pytest.raises(RefusedError, match=says):
                await call(world, line)

    check()
