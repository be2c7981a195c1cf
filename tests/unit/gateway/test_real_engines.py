"""The gateway over real reference engine processes: P/D answers equal aggregated answers.

One P/D group (1 prefill, 2 decodes) and one aggregated instance, all real processes with the
built-in model; the client is the OpenAI SDK, unchanged.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletionStreamOptionsParam
from tests.support.engines import TOKEN, Client, EngineProcess, Group, until
from tests.support.gateway_rig import PushSource, metric_values

from pdserve.cli.load import Ask, poisson, run_load
from pdserve.engines.credentials import Credential
from pdserve.gateway.app import GatewayOptions, GatewayServer
from pdserve.terms import Slo
from pdserve.wire import metrics as names
from pdserve.wire.routes import RouteGroup, RouteScenario, RouteTable

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

MODEL = "reference"
EXECUTING = 'pdserve_engine_slots{state="executing"}'
RUNNING, HOLDING = 'pdserve_engine_slots{state="running"}', 'pdserve_engine_slots{state="holding"}'
SLOTS = {"prefill": 2, "decode": 4}
PROMPTS = [
    "The", "Return a new list of names, or raise an error", "x = [1, 2,", "Permission is " * 40,
]  # fmt: skip


@dataclass
class World:
    """Everything that runs in this module."""

    group: Group
    both: EngineProcess
    gateway: GatewayServer
    source: PushSource
    url: str
    version: int = 0

    async def route(self) -> None:
        """Publish the group's living members."""
        self.version += 1
        made = tuple(e.route(SLOTS[e.role]) for e in (*self.group.prefills, *self.group.decodes))
        # Wide: on a busy machine one decode alone may need half a minute for what is sent here.
        slo = Slo(ttft=60.0, handoff=60.0, tpot=1.0, attainment=0.9)
        scenario = RouteScenario("chat", slo, (RouteGroup(0, "r1", made),), models=("shop",))
        table = RouteTable("shop", self.version, MODEL, "Reference", (scenario,))
        await self.source.push(table)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    client = Client()
    prefill = EngineProcess("prefill", ("--slots", "2"))
    decodes = [EngineProcess("decode", ("--slots", "4")) for _ in range(2)]
    both = EngineProcess("both", ("--slots", "4"))
    started = [prefill, *decodes, both]
    source = PushSource()
    gateway = GatewayServer(
        source,
        GatewayOptions(credential=Credential(TOKEN), drain_seconds=1.0),
        rng=random.Random(1),
    )
    try:
        for engine in started:
            engine.start()
        for engine in started:
            await until(lambda e=engine: client.up(e), f"{engine.name} listens", 60)  # type: ignore[misc]
        group = Group(client, [prefill], decodes)
        await group.push()
        port = await gateway.start("127.0.0.1", 0)
        made = World(group, both, gateway, source, f"http://127.0.0.1:{port}")
        await made.route()
        yield made
    finally:
        await gateway.stop()
        for engine in started:
            engine.kill()
        await client.close()


def sdk(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


USAGE: ChatCompletionStreamOptionsParam = {"include_usage": True}


async def completion(client: openai.AsyncOpenAI, stream: bool, **ask: Any) -> tuple[Any, ...]:
    if not stream:
        whole = await client.completions.create(**ask)
        choice = whole.choices[0]
        return choice.text, choice.finish_reason, whole.usage and whole.usage.completion_tokens
    text, reason, tokens = "", None, None
    async for chunk in await client.completions.create(**ask, stream=True, stream_options=USAGE):
        for choice in chunk.choices:
            text += choice.text
            reason = choice.finish_reason or reason
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
    return text, reason, tokens


async def chat(client: openai.AsyncOpenAI, stream: bool, **ask: Any) -> tuple[Any, ...]:
    ask["messages"] = [{"role": "user", "content": ask.pop("prompt")}]
    if not stream:
        whole = await client.chat.completions.create(**ask)
        choice = whole.choices[0]
        return (
            choice.message.content, choice.finish_reason,
            whole.usage and whole.usage.completion_tokens,
        )  # fmt: skip
    text, reason, tokens = "", None, None
    async for chunk in await client.chat.completions.create(
        **ask, stream=True, stream_options=USAGE
    ):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
    return text, reason, tokens


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", [completion, chat])
async def test_pd_equals_aggregated(world: World, kind: Any, stream: bool) -> None:
    async with sdk(world.url) as pd, sdk(world.both.url) as aggregated:
        asks = [
            {"prompt": prompt, "max_tokens": 1 + 9 * i, "temperature": 0.8 * (i % 2), "seed": i}
            for i, prompt in enumerate(PROMPTS)
        ]
        asks.append({"prompt": PROMPTS[1], "max_tokens": 24, "temperature": 0, "stop": ["e"]})
        for ask in asks:
            want = await kind(aggregated, stream, model=MODEL, **ask)
            got = await kind(pd, stream, model="shop", **ask)
            assert got == want, ask
            assert want[2], "tokens were reported"


async def test_errors_of_real_engines_reach_the_sdk(world: World) -> None:
    async with sdk(world.url) as pd:
        with pytest.raises(openai.BadRequestError) as long:
            await pd.completions.create(model="shop", prompt="word " * 6000, max_tokens=4)
        assert long.value.request_id
        with pytest.raises(openai.BadRequestError):
            await pd.completions.create(model="shop", prompt="x", temperature=-1)
        with pytest.raises(openai.NotFoundError):
            await pd.completions.create(model=MODEL, prompt="x")


async def test_slots_are_free_again_after_cancelled_requests(world: World) -> None:
    async with sdk(world.url) as pd:
        for _ in range(3):
            stream = await pd.completions.create(
                model="shop",
                prompt="x",
                max_tokens=1000,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            async for _ in stream:
                break
            await stream.close()

    async def idle() -> bool:
        slots = [(world.group.prefills[0], HOLDING), *((d, RUNNING) for d in world.group.decodes)]
        return sum([await world.group.client.metric(*each) for each in slots]) == 0

    await until(idle, "slots free")


@pytest.mark.invariant(12)
async def test_clients_that_leave_at_any_time_leave_no_kv_and_no_slot(world: World) -> None:
    """Whatever the moment, streamed or whole; then honest requests are all served."""
    rng = random.Random(3)
    async with sdk(world.url) as pd:

        async def leave(i: int) -> None:
            ask = pd.completions.create(
                model="shop", prompt=f"Number {i} is " * 30, max_tokens=40, stream=i % 2 == 0,
                extra_body={"ignore_eos": True},
            )  # fmt: skip
            with contextlib.suppress(TimeoutError, openai.APITimeoutError):
                async with asyncio.timeout(rng.random() * 0.4):
                    answer = await ask
                    if isinstance(answer, openai.AsyncStream):
                        async for _ in answer:
                            pass

        for start in range(0, 80, 8):
            await asyncio.gather(*(leave(i) for i in range(start, start + 8)))
        prefill, decodes = world.group.prefills[0], world.group.decodes

        async def held() -> bool:
            slots = [(prefill, HOLDING), (prefill, EXECUTING), *((d, RUNNING) for d in decodes)]
            return sum([await world.group.client.metric(*each) for each in slots]) == 0

        await until(held, "nothing is held")
        scheduler = world.gateway.service.scheduler("shop", {})[0]
        assert scheduler.dispatcher.waiting == 0
        assert all(i.used == 0 for i in scheduler.view.instances())
        answers = await asyncio.gather(
            *(pd.completions.create(model="shop", prompt="x", max_tokens=3) for _ in range(20))
        )
        assert all(a.usage for a in answers)


async def test_killed_decode_loses_only_streams_that_had_begun(world: World) -> None:
    """Last test of the module: it destroys one decode."""
    victim, other = world.group.decodes

    def ask(i: int) -> Ask:
        extra = {"ignore_eos": True, "seed": i}
        return Ask("shop", f"Number {i} is", 150, stream=i % 3 != 0, extra=extra)

    load = asyncio.create_task(run_load(world.url, poisson(8, 4, ask, random.Random(5))))

    async def busy() -> bool:
        return await world.group.client.metric(victim, RUNNING) >= 2

    await until(busy, "streams on the victim")
    victim.kill()
    samples = await load
    assert len(samples) > 20
    failed = [s for s in samples if not s.ok]
    assert [s for s in failed if not s.started_streaming] == []
    assert len(failed) <= SLOTS["decode"] + 2
    text = (await world.group.client.call("GET", world.url + "/metrics")).body
    assert sum(metric_values(text, names.GATEWAY_OUTCOME, {"outcome": "failed"})) == len(failed)
    world.group.decodes = [other]
    await world.route()
    async with sdk(world.url) as pd:
        assert (await pd.completions.create(model="shop", prompt="x", max_tokens=3)).usage
