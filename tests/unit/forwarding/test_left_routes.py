"""Requests whose scenario, model or engine type leaves the routes while they are on their way."""

import pytest
from tests.support.dispatch_world import scenario
from tests.support.request_script import CONTINUING, STEPS, TOGETHER, play
from tests.support.request_world import World

from pdserve.forwarding.request.effects import FlowTraits, Unserved

P0, D0 = "send prefill g0p0", "send decode g0d0"
P1, D1 = "send prefill g1p0", "send decode g1d0"
HELD = f"{P0}, read prefill, drop prefill, {D0}"
SERVED = f"{P1}, read prefill, drop prefill, {D1}, deliver g1d0, drop decode, ended completed"
ANSWER = "accepted prefilled accepted delivered"

MOVED: dict[str, tuple[FlowTraits, str, str]] = {
    "refused by its prefill": (
        CONTINUING, f"replaced full {ANSWER}",
        f"{P0}, drop prefill, move, {SERVED}",
    ),
    "waits for a prefill": (
        CONTINUING, f"full replaced {ANSWER}",
        f"{P0}, drop prefill, move, {SERVED}",
    ),
    "its prefill is lost": (
        CONTINUING, f"replaced lost {ANSWER}",
        f"{P0}, release g0p0, move, {SERVED}",
    ),
    "its KV is held": (
        CONTINUING, "accepted replaced prefilled accepted delivered",
        f"{HELD}, deliver g0d0, drop decode, ended completed",
    ),
    "a decode refused": (
        CONTINUING, "accepted prefilled full replaced soon accepted delivered",
        f"{HELD}, drop decode, {D0}, deliver g0d0, drop decode, ended completed",
    ),
    "its decode is lost": (
        CONTINUING, f"accepted prefilled replaced lost {ANSWER}",
        f"{HELD}, release g0p0, move, {SERVED}",
    ),
    "no decode gets its KV": (
        CONTINUING, f"accepted prefilled replaced kv-failed {ANSWER}",
        f"{HELD}, drop decode, release g0p0, move, {SERVED}",
    ),
    "a pair is refused": (
        TOGETHER, f"replaced full {ANSWER}",
        f"{P0}, {D0}, drop decode, drop prefill, release g0p0, move, {SERVED}",
    ),
    "its stream breaks off": (
        CONTINUING, "accepted prefilled accepted token replaced lost",
        f"{HELD}, deliver g0d0, release g0p0, complete stream, go on, ended Failed",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("traits", "script", "want"), MOVED.values(), ids=MOVED.keys())
def test_a_request_goes_to_what_serves_its_model_now(
    traits: FlowTraits, script: str, want: str
) -> None:
    client = play(script, traits)
    assert ", ".join(client.log) == want
    assert client.world.at_rest
    assert client.world.counts.ended == 1


GONE = {
    "waits for a prefill": "full retired",
    "its prefill refuses": "retired full",
    "its prefill is lost": "retired lost",
    "its KV is lost": "accepted prefilled retired kv-failed",
    "its decode is lost": "accepted prefilled retired lost",
}


@pytest.mark.parametrize("script", GONE.values(), ids=GONE.keys())
def test_a_request_that_nothing_serves_any_more_ends_at_once(script: str) -> None:
    client = play(script)
    assert isinstance(client.ending, Unserved)
    assert "left the routes" in client.ending.message
    assert client.world.at_rest


def test_a_request_that_comes_to_a_scheduler_that_left_is_moved() -> None:
    """Its limits were looked up in between."""
    world = World(scenario(([1], [1])))
    late = world.scheduler
    STEPS["replaced"](world.arrive())
    client = world.arrive(scheduler=late)
    assert client.log == ["move", P1]
    assert client.ending == "none"


def test_all_that_wait_move_and_keep_their_deadlines() -> None:
    world = World(scenario(([1], [1])))
    clients = [world.arrive() for _ in range(4)]
    due = [c.request.ticket.deadline for c in clients if c.request.ticket is not None]
    STEPS["replaced"](clients[0])
    assert [c.log for c in clients] == [[P0], ["move", P1], ["move"], ["move"]]
    moved = [c.request.ticket.deadline for c in clients if c.request.ticket is not None]
    assert moved == pytest.approx(due)
    world.clock.wait(40.0)
    assert [type(c.ending).__name__ for c in clients[2:]] == ["Refused"] * 2
    assert world.counts.seen["arrived"] == 4, "each has come once"
