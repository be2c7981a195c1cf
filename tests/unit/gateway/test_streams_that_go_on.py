"""What becomes of a stream whose decode is lost, with stub engines: which go on, which end."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.support.continuing_stub import ContinuingStub
from tests.support.gateway_rig import PATIENCE, SLO, Answer, Rig, eventually, parse_answer

from pdserve.engines.credentials import Credential
from pdserve.forwarding.deadline import PromptSize
from pdserve.forwarding.request.effects import Settings
from pdserve.gateway.delivery import ClientReply
from pdserve.gateway.job import Job, Tools
from pdserve.gateway.release import Releaser
from pdserve.gateway.request_driver import RequestDriver
from pdserve.gateway.sent_stream import KeptMemory
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


class Reader:
    """A client that reads its stream as it comes."""

    def __init__(self, rig: Rig) -> None:
        self._rig, self._raw = rig, b""

    async def ask(self, until: str) -> None:
        """Ask, and read until this text has come."""
        body = b'{"model":"tiny","prompt":"hello","stream":true,"max_tokens":6}'
        head = b"POST /v1/completions HTTP/1.1\r\nhost: g\r\nconnection: close\r\n"
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._rig.port)
        self._writer.write(head + b"content-length: %d\r\n\r\n%b" % (len(body), body))
        async with asyncio.timeout(PATIENCE):
            while until.encode() not in self._raw:
                self._raw += await self._reader.read(4096)

    async def answer(self) -> Answer:
        """The rest of it."""
        async with asyncio.timeout(PATIENCE):
            self._raw += await self._reader.read()
        self._writer.close()
        return parse_answer(self._raw)


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


async def lose(rig: Rig, groups: list[list[ContinuingStub]], also: int = 0) -> Answer:
    """Ask, and kill the decode that streams, and so many others, while it does."""
    for _, decode in groups:
        decode.kept = asyncio.Event()
    client = Reader(rig)
    await client.ask("t0 ")
    (dying,) = [d for _, d in groups if d.running]
    idle = [d for _, d in groups if d is not dying]
    for decode in (*idle[:also], dying):
        await decode.kill()
    for _, decode in groups:
        decode.kept = None
    return await client.answer()


@pytest.mark.parametrize("seed", range(6))
async def test_it_goes_to_another_group_when_its_own_lost_its_decode(rig: Rig, seed: int) -> None:
    """The prefill of its own looks idle now, and would compute for nothing."""
    groups = [await group(rig, i) for i in range(2)]
    await serve(rig, *groups, seed=seed)
    answer = await lose(rig, groups)
    assert (answer.text, error(answer)) == (WHOLE, None)
    assert [len(prefill.seen) for prefill, _ in groups] == [1, 1]


@pytest.mark.parametrize("seed", range(6))
async def test_a_group_found_without_its_decode_is_no_end(rig: Rig, seed: int) -> None:
    """One that is not there broke nothing of this request."""
    groups = [await group(rig, i) for i in range(3)]
    await serve(rig, *groups, seed=seed)
    answer = await lose(rig, groups, also=1)
    assert (answer.text, error(answer)) == (WHOLE, None)


async def test_a_long_answer_has_the_time_that_its_prefill_takes(rig: Rig) -> None:
    """Of 7 tokens of prompt and 3 of answer, at 10 s a token by the route table."""
    engines = await group(rig, 0)
    await rig.start()
    await rig.routes(engines, prefill_seconds=(0.0, 10.0))
    engines[1].script = ["cut:3"]
    assert (await ask(rig)).text == WHOLE
    first, second = (int(h[b"x-pdserve-deadline-ms"]) for h in engines[0].headers)
    assert first <= 1000 * SLO.ttft
    assert second > 1000 * SLO.ttft + 45_000, "105 s more than its grace"


async def test_a_stream_has_its_grace_whatever_it_had_before(rig: Rig) -> None:
    """A connection refused before its first token must not shorten it."""
    await serve(rig, await group(rig, 0))
    scheduler, flow, _ = rig.gateway.service.scheduler("tiny", {})
    pool = rig.gateway.pool
    tools = Tools(pool, Releaser(pool, Credential()), Credential(), Settings())
    job = Job("completions", {"stream": True}, "r", (), PromptSize())
    reply = cast("ClientReply", SimpleNamespace(headers=()))
    driver = RequestDriver(scheduler, flow, tools, job, reply, 0.0)
    request = driver.request
    now = time.perf_counter()
    request.grace_until = now + 600.0
    request.grant_grace(now)
    assert request.grace_until == now + 600.0


@pytest.mark.interpreted
async def test_each_choice_counts_the_prompt_that_it_keeps(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one that is open keeps all of it."""
    taken: list[int] = []
    take = KeptMemory.take

    def noted(memory: KeptMemory, size: int) -> bool:
        taken.append(size)
        return take(memory, size)

    monkeypatch.setattr(KeptMemory, "take", noted)
    await serve(rig, await group(rig, 0))
    for choices in (1, 3):
        taken.clear()
        assert (await ask(rig, prompt="x" * 10_000, n=choices)).status == 200
        assert len([size for size in taken if size > 25_000]) == choices
    taken.clear()
    assert (await ask(rig, prompt=["x" * 10_000] * 3)).status == 200
    assert sum(taken) < 3 * 40_000
