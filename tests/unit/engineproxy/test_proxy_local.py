"""Prompts that a decode's engine computes itself, behind its proxy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tests.support.gateway_rig import Answer, eventually
from tests.support.proxied_gateway import gateway
from tests.support.proxy_rig import KEEP, Instance, ProxyRig, rig
from tests.support.vllm_stub import MODEL

from pdserve.engineproxy.local_prompts import RECENT, LocalPrompts

LOCAL = {"x-pdserve-local-prefill": "1"}
TPOT = {"x-pdserve-tpot-ms": "60000"}


@pytest_asyncio.fixture
async def group() -> AsyncIterator[ProxyRig]:
    async with rig(slots=2, prefetch=2) as made:
        yield made


async def ask(decode: Instance, more: dict[str, str] | None = None, **body: Any) -> Answer:
    value = {"model": MODEL, "prompt": "x", "max_tokens": 3, **body}
    return await decode.ask("POST", "/v1/completions", value, **LOCAL, **(more or {}))


def reason(answer: Answer) -> str | None:
    return answer.headers.get("x-pdserve-reject")


@pytest.mark.parametrize("stream", [False, True])
async def test_the_engine_computes_what_comes_without_parameters(
    group: ProxyRig, stream: bool
) -> None:
    decode = group.instances["d0"]
    answer = await ask(decode, stream=stream)
    assert (answer.status, answer.text) == (200, "t0 t1 t2 ")
    assert "kv_transfer_params" not in decode.stub.seen[0]
    await eventually(lambda: not decode.executing, "the place is free")


@pytest.mark.parametrize(
    ("headers", "body"),
    [({}, {}), (LOCAL, {"kv_transfer_params": KEEP}), (LOCAL, {"kv_transfer_params": None})],
)
async def test_anything_else_is_refused(
    group: ProxyRig, headers: dict[str, str], body: dict[str, Any]
) -> None:
    decode = group.instances["d0"]
    value = {"model": MODEL, "prompt": "x", **body}
    answer = await decode.ask("POST", "/v1/completions", value, **headers)
    assert (answer.status, answer.json["error"]["code"]) == (400, "wrong_role")
    assert decode.stub.seen == []


@pytest.mark.parametrize("given", ["x", "1.5", "\u00b2"])
async def test_a_bad_target_is_refused(group: ProxyRig, given: str) -> None:
    answer = await ask(group.instances["d0"], {"x-pdserve-tpot-ms": given})
    assert (answer.status, reason(answer)) == (400, None)


async def test_places_to_fetch_ahead_compute_nothing(group: ProxyRig) -> None:
    decode = group.instances["d0"]
    decode.stub.token_gate = asyncio.Event()
    running = [asyncio.create_task(ask(decode)) for _ in range(2)]
    await eventually(lambda: decode.stub.running == 2, "both run")
    third = await ask(decode)
    assert (third.status, reason(third)) == (503, "decode_full")
    decode.stub.token_gate.set()
    assert [a.status for a in await asyncio.gather(*running)] == [200, 200]
    assert decode.executing == 0


async def test_prompts_are_computed_one_at_a_time_where_there_is_a_target(group: ProxyRig) -> None:
    decode = group.instances["d0"]
    decode.stub.token_gate = asyncio.Event()
    first = asyncio.create_task(ask(decode, TPOT, stream=True))
    await eventually(lambda: decode.stub.running == 1, "it computes")
    second = await ask(decode, TPOT)
    assert (second.status, reason(second)) == (503, "tpot")
    decode.stub.token_gate.set()
    assert (await first).status == 200
    assert (await ask(decode, TPOT)).status == 200


async def test_a_client_that_leaves_ends_the_prompt(group: ProxyRig) -> None:
    decode = group.instances["d0"]
    decode.stub.token_gate = asyncio.Event()
    leaving = asyncio.create_task(ask(decode, TPOT, stream=True))
    await eventually(lambda: decode.stub.running == 1, "it computes")
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await eventually(lambda: not decode.executing, "the place is free")
    decode.stub.token_gate = None
    assert (await ask(decode, TPOT)).status == 200


async def test_an_engine_that_fails_is_no_refusal(group: ProxyRig) -> None:
    decode = group.instances["d0"]
    decode.stub.raw = b"HTTP/1.1 500 X\r\ncontent-length: 2\r\n\r\n{}"
    answer = await ask(decode)
    assert answer.status == 502
    assert decode.executing == 0


def test_slow_streams_keep_prompts_away_for_a_while() -> None:
    prompts = LocalPrompts()
    assert not prompts.too_slow(0.05, 0.0), "nothing is known"
    prompts.ended(0.0, 0.1, 1)
    assert not prompts.too_slow(0.001, 0.1), "one token has no time between tokens"
    prompts.ended(0.0, 1.0, 21)
    assert prompts.too_slow(0.05, 1.0)
    assert not prompts.too_slow(0.06, 1.0)
    assert not prompts.too_slow(None, 1.0), "not asked to look"
    for _ in range(30):
        prompts.ended(0.0, 1.0, 101)
    assert not prompts.too_slow(0.05, 1.0)
    prompts.ended(0.0, 100.0, 1001)
    assert prompts.too_slow(0.05, 100.0), "what was before has passed"
    assert not prompts.too_slow(0.05, 100.1 + RECENT)


async def test_the_whole_path_of_a_short_and_a_long_prompt(group: ProxyRig) -> None:
    p, d = group.instances["p0"], group.instances["d0"]
    async with gateway(MODEL) as front:
        routes = [i.route() for i in group.instances.values()]
        await front.route(routes, local_prefill="Fixed", local_prefill_tokens=40)
        short = [await front.complete(max_tokens=3, stream=s) for s in (False, True)]
        assert [a.text for a in short] == ["t0 t1 t2 "] * 2
        assert (len(p.stub.seen), len(d.stub.seen)) == (0, 2)
        long = await front.complete(max_tokens=3, prompt="word " * 100)
        assert (long.text, len(p.stub.seen)) == ("t0 t1 t2 ", 1)
    await eventually(lambda: not (p.held or d.executing), "nothing is left")
