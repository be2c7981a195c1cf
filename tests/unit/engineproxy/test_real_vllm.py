"""A real vLLM pair on this machine's CPU, behind our proxies and gateway.

Run by hand: it needs some 7 GiB, and a minute or two for its start (docs/engines/vllm.md). Tests
come in the order of this file; the last ones break what they use.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
import pytest_asyncio
from tests.support.gateway_rig import Answer, metric_values
from tests.support.proxied_gateway import ProxiedGateway, gateway
from tests.support.proxy_rig import AUTH, KEEP, TOKEN, ask
from tests.support.vllm_processes import NAME, VllmProcess, check_started, needs_vllm

from pdserve.engineproxy.proxy_config import parse
from pdserve.engineproxy.server import RunningProxy, running
from pdserve.wire import metrics
from pdserve.wire.peers import Peer, PeerTable
from pdserve.wire.routes import RouteInstance

pytestmark = [
    pytest.mark.vllm, needs_vllm, pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(480),
]  # fmt: skip

SLOTS = 2
START_SECONDS = 300.0
PATIENCE = 120.0
QUESTIONS = [
    "What is the capital of France?",
    "How many legs does a spider have?",
    "Name a colour of the rainbow, and say in one sentence why you like it.",
]
LONG = "Explain in detail how a steam engine works. " * 8


@dataclass
class Side:
    """One vLLM and its proxy."""

    process: VllmProcess
    proxy: RunningProxy

    @property
    def name(self) -> str:
        return self.process.role

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.proxy.port}"

    @property
    def executing(self) -> int:
        return self.proxy.context.places.executing

    @property
    def held(self) -> int:
        return self.proxy.context.places.holding

    async def kv_use(self) -> float:
        return await self.process.metric("vllm:kv_cache_usage_perc")

    async def leg(self, name: str, **body: Any) -> Answer:
        body = {"model": NAME, "prompt": LONG, "temperature": 0, **body}
        if self.process.role == "prefill":
            body = {**body, "max_tokens": 1, "kv_transfer_params": KEEP}
        return await ask(self.proxy.port, "POST", "/v1/completions", body, {"x-request-id": name})


@dataclass
class World:
    p: Side
    d: Side
    gateway: ProxiedGateway


async def until(check: Callable[[], Awaitable[bool]], what: str, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not await check():
        assert time.monotonic() < end, f"never: {what}"
        await asyncio.sleep(0.1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    processes = [VllmProcess("prefill", SLOTS).start(), VllmProcess("decode", SLOTS).start()]
    try:
        async with contextlib.AsyncExitStack() as stack:
            sides = []
            for process in processes:
                config = parse(
                    [*process.parts.proxy, "--engine", process.url, "--port", "0"],
                    {"PDSERVE_TOKEN": TOKEN, "PDSERVE_ROLE": process.role,
                     "PDSERVE_INSTANCE": process.role, "PDSERVE_DRAIN_SECONDS": "0"},
                )  # fmt: skip
                sides.append(Side(process, await stack.enter_async_context(running(config))))
            started = check_started(processes)
            begun = time.monotonic()

            async def ready() -> bool:
                started()
                return all(side.proxy.context.engine.up for side in sides)

            await until(ready, "both are up", START_SECONDS)
            print(f"both are up after {time.monotonic() - begun:.0f} s")
            peers = tuple(
                Peer(s.name, s.process.role, s.url, f"127.0.0.1:{s.process.side_port}", "r")
                for s in sides
            )
            for side in sides:
                table = PeerTable("g", 1, peers).to_json()
                await ask(side.proxy.port, "PUT", "/pdserve/v1/peers", table)

            async def linked() -> bool:
                return all(side.proxy.context.ready for side in sides)

            await until(linked, "both are linked")
            front = await stack.enter_async_context(gateway(NAME))
            await front.route(RouteInstance(s.name, s.process.role, s.url, SLOTS) for s in sides)
            yield World(sides[0], sides[1], front)
    finally:
        for process in processes:
            process.kill()


async def idle(world: World) -> None:
    async def check() -> bool:
        counts = [(s.executing, s.held, await s.kv_use()) for s in (world.p, world.d)]
        return not any(map(any, counts))

    # Shorter than the lease: nothing of it may wait for that.
    await until(check, "nothing runs, and no KV is held", 20.0)


@pytest.mark.parametrize("stream", [False, True])
async def test_text_equals_that_of_one_vllm(world: World, stream: bool) -> None:
    for question in QUESTIONS:
        body = {"messages": [{"role": "user", "content": question}], "max_tokens": 24}
        want = (await world.d.process.generate(**body)).text
        before = await pulled_tokens(world)
        begun = time.monotonic()
        answer = await world.gateway.chat(**body, temperature=0, stream=stream)
        took = time.monotonic() - begun
        assert answer.status == 200, answer.body
        tokens = await pulled_tokens(world) - before
        print(f"{took:.2f} s, {tokens:.0f} prompt tokens pulled: {answer.text!r}")
        assert answer.text == want
        assert tokens > 0, "the decode computed the prompt itself"
    await idle(world)


async def pulled_tokens(world: World) -> float:
    return await world.d.process.metric(
        "vllm:prompt_tokens_by_source_total", source="external_kv_transfer"
    )


async def test_a_completion_equals_that_of_one_vllm(world: World) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 16}
    want = (await world.d.process.generate(**body)).text
    answer = await world.gateway.complete(**body, temperature=0)
    assert (answer.status, answer.text) == (200, want)
    one = await world.gateway.complete(prompt="Once upon a time", max_tokens=1, temperature=0)
    assert want.startswith(one.text)
    await idle(world)


async def test_a_refusal_leaves_the_kv_where_it_is(world: World) -> None:
    """The decode's proxy refuses; vLLM sees nothing of it."""
    d = world.d
    kv = (await world.p.leg("kept")).json["kv_transfer_params"]
    taken = [d.proxy.context.places.take(str(i), 0.0) for i in range(d.proxy.context.places.total)]
    refused = await d.leg("refused", kv_transfer_params=kv, max_tokens=4)
    assert (refused.status, refused.headers["x-pdserve-reject"]) == (503, "decode_full")
    for place in taken:
        assert place is not None
        d.proxy.context.free(place)
    answer = await d.leg("taken", kv_transfer_params=kv, max_tokens=4)
    assert answer.status == 200
    await idle(world)


async def test_vllm_itself_has_freed_the_kv_that_it_refused(world: World) -> None:
    """Why refusals come first; and how a release is done."""
    expired = await world.p.process.metric("vllm:nixl_num_kv_expired_reqs_total")
    await world.p.leg("released")
    assert await world.p.kv_use() > 0
    assert world.p.held == 1
    begun = time.monotonic()
    await ask(world.p.proxy.port, "POST", "/pdserve/v1/release", {"request_id": "released"})
    await idle(world)
    print(f"released after {time.monotonic() - begun:.2f} s")
    assert await world.p.process.metric("vllm:nixl_num_kv_expired_reqs_total") == expired


async def test_a_client_that_leaves_aborts_both_sides(world: World) -> None:
    body = orjson.dumps(
        {"model": NAME, "prompt": LONG, "max_tokens": 800, "stream": True, "ignore_eos": True}
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)
    head = f"POST /v1/completions HTTP/1.1\r\nauthorization: {AUTH['authorization']}\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    assert b"200" in await reader.readline()
    assert await world.d.process.metric("vllm:num_requests_running") == 1
    writer.close()
    await idle(world)
    assert await world.d.process.metric("vllm:num_requests_running") == 0


async def test_series_that_the_ratio_loop_reads(world: World) -> None:
    for side, names in (
        (world.p, (metrics.PREFILL_BATCHES, metrics.PREFILL_TOKENS, metrics.KV_TRANSFERS)),
        (world.d, (metrics.DECODE_STEPS, metrics.DECODE_STEP_REQUESTS)),
    ):
        text = (await ask(side.proxy.port, "GET", "/metrics")).body.decode()
        for name in names:
            (value,) = metric_values(text, name, {})
            assert value > 0, name


async def test_a_drain_refuses_and_ends_what_runs(world: World) -> None:
    kv = (await world.p.leg("last")).json["kv_transfer_params"]
    report = await ask(world.p.proxy.port, "POST", "/pdserve/v1/drain")
    assert report.json == {"executing": 0, "holding": 1, "streams": 0}
    refused = await world.p.leg("late")
    assert refused.headers["x-pdserve-reject"] == "draining"
    assert (await world.d.leg("last", kv_transfer_params=kv, max_tokens=4)).status == 200
    await idle(world)
    report = await ask(world.p.proxy.port, "POST", "/pdserve/v1/drain")
    assert report.json["holding"] == 0
    world.p.proxy.context.draining = False


async def test_a_decode_killed_in_mid_stream_ends_the_stream_and_frees_the_pair(
    world: World,
) -> None:
    body = {"prompt": LONG, "max_tokens": 800, "stream": True, "ignore_eos": True}
    running = asyncio.create_task(world.gateway.complete(**body))

    async def streams() -> bool:
        return world.d.executing == 1 and not world.p.held and not world.p.executing

    await until(streams, "the decode streams")
    world.d.process.kill()
    answer = await running
    assert answer.status == 200
    assert "error" in answer.events[-1]
    print(f"{len(answer.events)} events before the error: {answer.events[-1]['error']['message']}")

    async def seen() -> bool:
        return not world.d.proxy.context.ready and not world.d.executing

    await until(seen, "the proxy has seen it")
    refused = await world.d.leg("x")
    assert refused.headers["x-pdserve-reject"] == "not_ready"
    assert (await ask(world.d.proxy.port, "GET", "/health")).status == 503
