"""`make bench-hostile` counts what it is there to count: lost answers, and what stays behind."""

from __future__ import annotations

import asyncio

import pytest
from benchmarks import hostile
from benchmarks.harness import Progress, Row
from benchmarks.parts.hostile_rig import completion, outcome, over_stubs, probing
from tests.support.gateway_rig import eventually
from tests.support.hostile_bodies import ENOUGH, attack


async def test_a_stream_that_was_cut_is_lost_and_a_whole_reply_is_not() -> None:
    async with over_stubs(1, 1) as service:
        stream = completion(stream=True)
        assert (await outcome(service.port, stream))[0] == 200
        assert (await outcome(service.port, completion()))[0] == 200
        for fault in ("cut:2", "error:2"):
            service.stubs[1].script = [fault]
            status, reply = await outcome(service.port, stream)
            assert status == 0, reply
        service.stubs[1].script = ["400"]
        assert (await outcome(service.port, completion()))[0] == 400
        await service.gateways[0].kill()
        assert (await outcome(service.port, stream))[0] == 0


async def test_what_is_left_behind_and_what_fails_is_counted() -> None:
    async with over_stubs(1, 1) as service:
        assert await service.left_behind() == 0
        assert await service.refused_of(5) == 0
        prefill = service.stubs[0]
        prefill.gate = asyncio.Event()
        waits = asyncio.create_task(outcome(service.port, completion()))
        await eventually(lambda: prefill.running == 1, "it computes")
        assert await service.left_behind() >= 2, "in the gateway and in the engine"
        prefill.gate.set()
        assert (await waits)[0] == 200
        service.stubs[1].script = ["400"] * 2
        assert await service.refused_of(5) == 2
        service.stubs[1].script = ["400"] * 1000
        async with probing(service.port, 100, completion) as probe:
            await eventually(lambda: len(probe.failed) > 0, "one failed")
        assert (probe.times, probe.sent) == ([], len(probe.failed))


async def test_an_attack_on_a_service_that_is_gone_ends() -> None:
    async with over_stubs(1, 1) as service:
        await service.gateways[0].kill()
        tally = await attack("127.0.0.1", service.port, 1, 5000, model="reference")
    assert ENOUGH <= len(tally.faults) < ENOUGH + 10
    assert not tally.statuses


async def test_a_part_that_cannot_go_on_fails_the_bench_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def stops(share: float, progress: Progress) -> list[Row]:
        raise AssertionError("nothing answers")

    async def runs(share: float, progress: Progress) -> list[Row]:
        return [Row("x", share, "s", "y", 1.0, 1, "lower")]

    monkeypatch.setattr(hostile, "PARTS", {"one": stops, "two": runs})
    rows, stopped = await hostile.everything(["one", "two"], 0.5)
    assert ([row.value for row in rows], stopped) == ([0.5], ["one: nothing answers"])
