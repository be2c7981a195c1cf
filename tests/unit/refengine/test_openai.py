"""The API as OpenAI's own client sees it, aggregated and across the handoff."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from unittest.mock import ANY

import openai
import orjson
import pytest
from tests.support.engines import Client, EngineProcess, Group, until

from pdserve.refengine.model.loader import LoadedModel
from pdserve.wire import calls

PATH = calls.PATH_COMPLETIONS
CHAT: list[Any] = [{"role": "user", "content": "What does json.dumps do?"}]


def events(raw: bytes) -> list[Any]:
    """Parsed `data:` lines; the end mark stays text."""
    lines = [line.removeprefix("data: ") for line in raw.decode().split("\n\n") if line]
    return [line if line == "[DONE]" else orjson.loads(line) for line in lines]


async def test_the_sdk_works(start: Any) -> None:
    engine = await start(EngineProcess("both"))
    sdk = openai.AsyncOpenAI(base_url=engine.url + "/v1", api_key="none")
    assert [m.id for m in (await sdk.models.list()).data] == ["reference"]
    chat = await sdk.chat.completions.create(
        model="reference",
        messages=CHAT,
        temperature=0,
        max_completion_tokens=30,
        logprobs=True,
        top_logprobs=2,
    )
    text = chat.choices[0].message.content
    assert text and chat.usage and chat.usage.prompt_tokens > 5
    logprobs = chat.choices[0].logprobs
    assert logprobs and logprobs.content
    assert len(logprobs.content) == chat.usage.completion_tokens
    assert logprobs.content[0].top_logprobs[0].token == logprobs.content[0].token
    pieces, usage, finish = [], None, None
    stream = await sdk.chat.completions.create(
        model="reference",
        messages=CHAT,
        temperature=0,
        max_completion_tokens=30,
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            finish = choice.finish_reason or finish
    assert "".join(pieces) == text
    assert finish == chat.choices[0].finish_reason
    assert usage is not None and usage.completion_tokens == chat.usage.completion_tokens
    plain = await sdk.completions.create(
        model="reference", prompt="Return", max_tokens=3, logprobs=1
    )
    assert plain.choices[0].logprobs and len(plain.choices[0].logprobs.tokens or []) == 3
    with pytest.raises(openai.BadRequestError, match="one choice per request"):
        await sdk.completions.create(model="reference", prompt="a", n=3)
    await sdk.close()


async def test_streaming_across_the_handoff(client: Client, start_group: Any) -> None:
    group: Group = await start_group()
    body: dict[str, Any] = {
        "model": "reference",
        "messages": CHAT,
        "temperature": 0,
        "max_tokens": 12,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    for _ in range(2):
        params = (await group.prefill(calls.PATH_CHAT, body)).body[calls.PARAM_KV]
        leg = body | {calls.PARAM_KV: params}
        async with client.stream(group.decodes[0].url + calls.PATH_CHAT, leg) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert stream.headers[calls.HEADER_SLOTS]
            seen = events(await stream.read())
    assert seen[-1] == "[DONE]"
    first, usage = seen[0], seen[-2]
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert first["usage"] is None and usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 12
    whole = await group.generate(calls.PATH_CHAT, body | {"stream": False, "stream_options": None})
    text = "".join(e["choices"][0]["delta"].get("content", "") for e in seen[:-2])
    assert whole.body["choices"][0]["message"]["content"] == text
    assert whole.body["usage"]["prompt_tokens"] == usage["usage"]["prompt_tokens"]


async def test_a_stop_string_across_the_handoff(start_group: Any) -> None:
    """The stop string begins in the prefill's token and ends in the decode's."""
    group: Group = await start_group()
    body = {"model": "reference", "prompt": "Return a list of", "temperature": 0, "max_tokens": 6}
    text = (await group.generate(PATH, body)).body["choices"][0]["text"]
    first = (await group.prefill(PATH, body)).body["choices"][0]["text"]
    assert len(first) > 1
    stop = text[len(first) - 1 : len(first) + 2]
    reply = await group.generate(PATH, body | {"stop": stop})
    assert reply.body["choices"][0]["text"] == text[: len(first) - 1]
    assert reply.body["choices"][0]["finish_reason"] == "stop"


async def test_an_end_at_token_one_holds_nothing(client: Client, start_group: Any) -> None:
    group: Group = await start_group()
    body = {"model": "reference", "prompt": "Return a list of", "temperature": 0, "max_tokens": 6}
    first = (await group.prefill(PATH, body)).body["choices"][0]["text"]
    ended = await group.prefill(PATH, body | {"stop": first})
    assert ended.body["choices"][0]["finish_reason"] == "stop"
    assert ended.body[calls.PARAM_KV] is None
    series = 'pdserve_engine_slots{state="holding"}'
    assert await client.metric(group.prefills[0], series) == 1


async def test_cached_tokens_are_reported_by_both_legs(start_group: Any) -> None:
    group: Group = await start_group()
    body = {"model": "reference", "prompt": [7] * 100, "max_tokens": 3, "ignore_eos": True}
    usages = [(await group.generate(PATH, body)).body["usage"] for _ in range(2)]
    cached = [u["prompt_tokens_details"]["cached_tokens"] for u in usages]
    assert cached == [0, 96]
    assert usages[0]["completion_tokens"] == 3


async def test_a_known_beginning_is_not_computed_again_and_changes_no_answer(
    client: Client, start_group: Any
) -> None:
    group: Group = await start_group()
    prefill, series = group.prefills[0], "pdserve_engine_prefill_tokens_total"
    start = [n % 50 for n in range(64)]

    async def computed(**fields: Any) -> tuple[int, int, str]:
        before = await client.metric(prefill, series)
        body = {"model": "reference", "prompt": [*start, 7, 8], "max_tokens": 6} | fields
        reply = (await group.generate(PATH, body | {"ignore_eos": True, "temperature": 0})).body
        cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
        tokens = await client.metric(prefill, series) - before
        return int(tokens), cached, reply["choices"][0]["text"]

    first = await computed()
    assert first[:2] == (66, 0)
    assert await computed() == (2, 64, first[2])
    assert await computed(prompt=[*start, 9]) == (1, 64, ANY)
    assert await computed(prompt=[9, *start]) == (65, 0, ANY)
    # Another salt finds none of it, and computes the same answer.
    assert await computed(cache_salt="a") == (66, 0, first[2])
    assert await computed(cache_salt="a") == (2, 64, first[2])
    assert await computed(cache_salt="b") == (66, 0, first[2])


@pytest.mark.parametrize("salt", ["", 5, ["a"], {}, True, "x" * 513])
async def test_a_salt_that_is_none_is_refused(salt: object, start_group: Any) -> None:
    group: Group = await start_group()
    body = {"model": "reference", "prompt": "x", "max_tokens": 1, "cache_salt": salt}
    reply = await group.prefill(PATH, body)
    assert reply.status == 400
    assert reply.body["error"]["param"] == "cache_salt"


async def test_figures_say_where_time_went(client: Client, start_group: Any) -> None:
    group: Group = await start_group()
    body = {"model": "reference", "prompt": [9] * 70, "max_tokens": 5, "ignore_eos": True}
    begin = time.monotonic()
    await group.generate(PATH, body)
    prefill, decode = group.prefills[0], group.decodes[0]
    want = {
        "pdserve_engine_prefill_batches_total": 1,
        "pdserve_engine_prefill_requests_total": 1,
        "pdserve_engine_prefill_tokens_total": 70,
        "pdserve_engine_prefill_tokens_squared_total": 4900,
        "pdserve_engine_kv_transfers_total": 1,
        "pdserve_engine_kv_transfer_bytes_total": 3 * 32 * 2048,
    }
    for series, value in want.items():
        assert await client.metric(prefill, series) == value, series
    computed = await client.metric(prefill, "pdserve_engine_prefill_compute_seconds_total")
    transferred = await client.metric(prefill, "pdserve_engine_kv_transfer_seconds_total")
    assert computed > 0 and transferred > 0
    assert computed + transferred < time.monotonic() - begin
    assert await client.metric(decode, "pdserve_engine_decode_steps_total") == 4
    assert await client.metric(decode, "pdserve_engine_decode_step_requests_total") == 4
    assert await client.metric(decode, "pdserve_engine_decode_step_context_tokens_total") == sum(
        range(71, 75)
    )
    label = '{model_name="reference"}'
    assert await client.metric(decode, "vllm:generation_tokens_total" + label) == 5
    assert await client.metric(decode, "vllm:num_requests_waiting" + label) == 0


async def test_paced_mode(client: Client, start_group: Any, model: LoadedModel) -> None:
    paced = ("--paced", "demo-small", "--pace-factor", "2")
    group: Group = await start_group((*paced, "--slots", "2"), (*paced, "--slots", "2"))
    body = {
        "model": "reference",
        "prompt": [9] * 100,
        "max_tokens": 6,
        "ignore_eos": True,
        "seed": 4,
    }
    begin = time.monotonic()
    first = await group.prefill(PATH, body)
    prefill_seconds = time.monotonic() - begin
    assert prefill_seconds >= 2 * (0.02 + 0.0005 * 100 + 1e-7 * 100**2) - 0.002
    begin = time.monotonic()
    reply = await group.decode(PATH, body, first.body[calls.PARAM_KV])
    steps = 5 * 2 * (0.025 + 0.001) + 2 * 100 * 2048 / 50e6
    assert time.monotonic() - begin >= steps - 0.01
    # The same tokens as without pacing: it computes for real.
    plain: Group = await start_group()
    assert (await plain.generate(PATH, body)).body["choices"] == reply.body["choices"]
    info = (await client.call("GET", group.decodes[0].url + calls.PATH_INFO)).body["paced"]
    assert (info["profile"], info["paceFactor"], info["steps"]) == ("demo-small", 2, 5)
    plain_info = (await client.call("GET", plain.decodes[0].url + calls.PATH_INFO)).body
    assert plain_info["paced"] is None
    assert await client.metric(group.decodes[0], "pdserve_engine_paced_valid") in (0, 1)
    metrics = (await client.call("GET", plain.decodes[0].url + calls.PATH_METRICS)).body
    assert "paced" not in metrics
    # A deadline below the profile's time is refused, one above is not.
    late = await group.prefill(
        PATH, body | {"prompt": [8] * 400}, **{calls.HEADER_DEADLINE_MS: "300"}
    )
    assert late.headers[calls.HEADER_REJECT] == calls.REJECT_DEADLINE
    good = await group.prefill(
        PATH, body | {"prompt": [8] * 400}, **{calls.HEADER_DEADLINE_MS: "900"}
    )
    assert good.status == 200


async def test_a_held_slot_of_a_paced_prefill_waits_for_the_paced_transfer(
    client: Client, start_group: Any
) -> None:
    paced = ("--paced", "demo-small", "--pace-factor", "20")
    group: Group = await start_group((*paced, "--slots", "1"), paced)
    body = {"model": "reference", "prompt": [9] * 200, "max_tokens": 2, "ignore_eos": True}
    first = await group.prefill(PATH, body)
    leg = asyncio.create_task(group.decode(PATH, body, first.body[calls.PARAM_KV]))
    begin = time.monotonic()

    async def freed() -> bool:
        return await client.metric(group.prefills[0], 'pdserve_engine_slots{state="holding"}') == 0

    await until(freed, "slot is freed")
    assert time.monotonic() - begin > 20 * 200 * 2048 / 50e6 * 0.9
    assert (await leg).status == 200
