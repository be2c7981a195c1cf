"""What becomes of a stream whose decode is lost, with stub engines: which go on, which end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.support.continuing_stub import ContinuingStub
from tests.support.gateway_rig import Answer, Rig, eventually

from pdserve.wire import metrics as names

WHOLE = "t0 t1 t2 t3 t4 t5 "


async def group(rig: Rig, number: int, prefills: int = 1, decodes: int = 1) -> list[ContinuingStub]:
    made = [("prefill", f"p{number}{i}") for i in range(prefills)]
    made += [("decode", f"d{number}{i}") for i in range(decodes)]
    found = [await rig.engine(role, name, ContinuingStub, slots=8) for role, name in made]
    return [e for e in found if isinstance(e, ContinuingStub)]


async def serve(rig: Rig, *groups: list[Any], **options: Any) -> None:
    await rig.start(**options)
    await rig.routes(*groups)


async def ask(rig: Rig, **more: Any) -> Answer:
    return await rig.complete(**{"stream": True, "max_tokens": 6} | more)


def error(answer: Answer) -> str | None:
    found = [e["error"]["message"] for e in answer.events if "error" in e]
    return found[0] if found else None


async def test_a_stream_goes_on(rig: Rig) -> None:
    engines = await group(rig, 0, decodes=2)
    await serve(rig, engines)
    for decode in engines[1:]:
        decode.script = ["cut:3"]
    answer = await ask(rig)
    assert (answer.text, error(answer)) == (WHOLE, None)


@pytest.mark.parametrize("usage", [False, True])
async def test_the_end_alone_costs_nothing(rig: Rig, usage: bool) -> None:
    """All tokens are the client's: no instance has to be asked, and none in vain."""
    engines = await group(rig, 0)
    await serve(rig, engines)
    scheduler = rig.gateway.service.scheduler("tiny", {})[0]
    while scheduler.budget.take():
        pass
    engines[1].script = ["unended"]
    answer = await ask(rig, stream_options={"include_usage": usage})
    assert (answer.text, error(answer)) == (WHOLE, None)
    assert answer.events[-1] == "[DONE]"
    assert await rig.metric(names.GATEWAY_OUTPUT_TOKENS) == 6


async def test_the_end_is_written_also_after_a_second_loss(rig: Rig) -> None:
    engines = await group(rig, 0)
    await serve(rig, engines)
    engines[1].script = ["cut:2", "unended"]
    answer = await ask(rig)
    assert (answer.text, error(answer)) == (WHOLE, None)


@pytest.mark.parametrize("old", ["p1", "d1"])
async def test_an_engine_that_does_not_replay_ends_the_stream(rig: Rig, old: str) -> None:
    """A client must not get a part of its answer twice."""
    first, second = await group(rig, 0), await group(rig, 1)
    await serve(rig, first)
    first[1].kept = asyncio.Event()
    task = asyncio.create_task(ask(rig))
    await eventually(lambda: first[1].running == 1, "decoding")
    for engine in second:
        engine.old = engine.name.startswith(old)
    await rig.routes(second)
    await first[1].kill()
    answer = await task
    assert answer.text == "t0 "
    assert error(answer)
    assert await rig.metric(names.GATEWAY_OUTCOME, outcome="failed") == 1
