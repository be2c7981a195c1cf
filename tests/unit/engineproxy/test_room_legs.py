"""Legs that meet in a room, at the proxy alone: what is refused, and from where KV may come."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.support.gateway_rig import eventually
from tests.support.proxy_rig import Instance, rig

from pdserve.wire.names import PORT_TRANSFER


def leg(prefill: Instance, room: int = 5, **more: Any) -> dict[str, Any]:
    place = {"bootstrap_host": prefill.stub.host, "bootstrap_port": PORT_TRANSFER}
    return {**place, "bootstrap_room": room, "max_tokens": 4, **more}


async def test_two_legs_of_a_room() -> None:
    async with rig(rooms=True) as made:
        p0, d0 = made.instances["p0"], made.instances["d0"]
        first = asyncio.create_task(p0.generate(**leg(p0)))
        await eventually(lambda: p0.executing == 1, "the prefill waits for its decode")
        second = await d0.generate(**leg(p0))
        assert (second.status, second.text) == (200, "t0 t1 t2 t3 ")
        assert (await first).status == 200
        assert (p0.executing, p0.held, d0.executing) == (0, 0, 0)


@pytest.mark.parametrize("role", ["p0", "d0"])
@pytest.mark.parametrize(
    "change",
    [
        {"bootstrap_room": None}, {"bootstrap_room": -1}, {"bootstrap_room": 1 << 63},
        {"bootstrap_room": "5"}, {"bootstrap_room": True}, {"bootstrap_port": None},
        {"bootstrap_port": "5600"}, {"bootstrap_host": None}, {"bootstrap_host": ["h"]},
        {"kv_transfer_params": {"do_remote_decode": True}},
    ],
)  # fmt: skip
async def test_what_is_no_leg_of_a_room_reaches_no_engine(
    role: str, change: dict[str, Any]
) -> None:
    async with rig(rooms=True) as made:
        body = {**leg(made.instances["p0"]), **change}
        answer = await made.instances[role].generate(**body)
        assert (answer.status, answer.json["error"]["code"]) == (400, "wrong_role")
        assert made.instances[role].stub.seen == []
        assert made.instances[role].executing == 0


@pytest.mark.invariant(15)
@pytest.mark.parametrize("host", ["10.0.0.9", "127.0.0.1", "169.254.169.254", "example.com"])
async def test_a_decode_meets_no_prefill_outside_its_table(host: str) -> None:
    async with rig(rooms=True) as made:
        d0 = made.instances["d0"]
        answer = await d0.generate(**leg(made.instances["p0"], bootstrap_host=host))
        assert (answer.status, answer.headers["x-pdserve-reject"]) == (502, "kv_failed")
        assert d0.stub.seen == []


async def test_a_full_prefill_refuses_before_its_engine_sees_the_leg() -> None:
    async with rig(rooms=True, slots=2) as made:
        p0 = made.instances["p0"]
        waiting = [asyncio.create_task(p0.generate(f"r{i}", **leg(p0, i))) for i in range(2)]
        await eventually(lambda: p0.stub.running == 2, "both wait for their decodes")
        answer = await p0.generate("r2", **leg(p0, 2))
        assert (answer.status, answer.headers["x-pdserve-reject"]) == (503, "full")
        assert answer.headers["x-pdserve-slots"] == "0/2"
        assert p0.stub.running == 2
        for one in waiting:
            one.cancel()
        await eventually(lambda: (p0.executing, p0.stub.running) == (0, 0), "both were aborted")


async def test_a_pull_leg_finds_no_room_at_a_proxy_without_rooms() -> None:
    async with rig() as made:
        answer = await made.instances["p0"].generate(
            bootstrap_host="h", bootstrap_port=1, bootstrap_room=1, kv_transfer_params={}
        )
        assert (answer.status, answer.json["error"]["code"]) == (400, "wrong_role")
