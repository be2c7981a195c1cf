"""Limits of scenarios and API keys with real sockets: what is refused, how, and what is not."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import openai
import orjson
import pytest
from tests.support.gateway_rig import SLO, Answer, Rig, eventually, parse_answer

from pdserve.gateway.auth import KeyRing, keys_of, tenant_of
from pdserve.gateway.limits import USUAL_OUTPUT, duration
from pdserve.http1.errors import ApiError
from pdserve.terms.limits import UsageLimits

ALICE, BOB = {"authorization": "Bearer sk-alice"}, {"x-api-key": "sk-bob"}


class Clock:
    """Stands until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def limited(answer: Answer) -> tuple[str, str]:
    """Type and message of a 429 of a limit."""
    assert answer.status == 429, answer.body
    error = answer.json["error"]
    assert error["code"] == "rate_limit_exceeded"
    return error["type"], error["message"]


async def test_requests_a_minute_are_refused_beyond_and_come_back(rig: Rig, clock: Clock) -> None:
    await rig.one_group(scenario_limits=UsageLimits(requests=2), clock=clock)
    first = await rig.complete(max_tokens=4)
    assert first.status == 200
    assert {k: v for k, v in first.headers.items() if k.startswith("x-ratelimit")} == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "30s",
    }
    assert (await rig.complete(stream=True)).headers["x-ratelimit-remaining-requests"] == "0"
    refused = await rig.complete()
    kind, message = limited(refused)
    assert kind == "requests"
    assert "scenario 'chat' on requests per min (RPM): Limit 2, Used 2, Requested 1." in message
    assert "try again in 30s" in message
    assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("30", "30000")
    assert refused.headers["x-ratelimit-reset-requests"] == "1m0s"
    assert rig.engines["p0"].events["attempts"] == 2, "what is refused costs nothing"
    clock.now += 30.0
    assert (await rig.complete()).status == 200
    labels = {"scenario": "chat", "scope": "scenario", "reason": "requests"}
    assert await rig.metric("pdserve_gateway_limited_total", **labels) == 1
    assert await rig.metric("pdserve_gateway_offered_total") == 3, "a refusal is not offered"


async def test_tokens_are_taken_at_most_and_settled_by_use(rig: Rig, clock: Clock) -> None:
    await rig.one_group(scenario_limits=UsageLimits(tokens=1000), clock=clock)
    rig.engines["p0"].prompt_tokens, rig.engines["p0"].stop_at_first = 60, True
    answer = await rig.complete(prompt=[1] * 60, max_tokens=900)
    assert answer.headers["x-ratelimit-remaining-tokens"] == "40", "prompt and maximum of output"
    used = answer.json["usage"]["total_tokens"]
    assert used == 61
    after = await rig.complete(prompt=[1] * 60, max_tokens=10)
    assert int(after.headers["x-ratelimit-remaining-tokens"]) == 1000 - used - 70
    kind, message = limited(await rig.complete(prompt=[1] * 60, max_tokens=900))
    assert kind == "tokens"
    assert "Requested 960" in message


@pytest.mark.parametrize("chat", [False, True])
async def test_a_stream_that_its_client_cuts_counts_as_far_as_it_came(
    rig: Rig, clock: Clock, chat: bool
) -> None:
    """Engines report what they generated with the last event, which such a client never gets."""
    await rig.one_group(scenario_limits=UsageLimits(tokens=1000), clock=clock)
    rig.engines["d0"].token_seconds = 0.01
    path, body = "/v1/completions", {"model": "tiny", "prompt": [1] * 60, "max_tokens": 400}
    if chat:
        path = "/v1/chat/completions"
        body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 400}
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    text = orjson.dumps({**body, "stream": True})
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(text)}\r\n\r\n"
    writer.write(head.encode() + text)
    got = b""
    while got.count(b"data: ") < 50:
        got += await asyncio.wait_for(reader.read(65536), 60)
    writer.transport.abort()
    await eventually(lambda: not rig.gateway.server.connections, "its client is gone")
    after = await rig.complete(prompt="x", max_tokens=1)
    assert int(after.headers["x-ratelimit-remaining-tokens"]) <= 1000 - 49


async def test_a_request_above_the_limit_gets_no_time_to_come_back(rig: Rig, clock: Clock) -> None:
    await rig.one_group(scenario_limits=UsageLimits(tokens=100), clock=clock)
    refused = await rig.complete(prompt=[1] * 10, max_tokens=91)
    assert "asks for more than the limit" in limited(refused)[1]
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    assert (await rig.complete(prompt=[1] * 10, max_tokens=90)).status == 200


async def test_without_a_maximum_the_mean_answer_is_expected(rig: Rig, clock: Clock) -> None:
    await rig.one_group(scenario_limits=UsageLimits(tokens=10_000), clock=clock)
    first = await rig.complete(prompt=[1] * 100)
    assert int(first.headers["x-ratelimit-remaining-tokens"]) == 9900 - USUAL_OUTPUT
    for _ in range(60):
        last = await rig.complete(prompt=[1] * 7)
        clock.now += 60.0
    assert int(last.headers["x-ratelimit-remaining-tokens"]) > 9900, "answers here are short"


async def test_a_context_bounds_what_a_request_may_take(rig: Rig, clock: Clock) -> None:
    await rig.one_group(clock=clock)
    engines = list(rig.engines.values())
    await rig.routes(engines, limits=UsageLimits(tokens=1000), max_model_len=128)
    answer = await rig.complete(prompt=[1] * 28, max_tokens=200)
    assert answer.headers["x-ratelimit-remaining-tokens"] == "872"


async def test_requests_in_progress_are_bounded_until_they_end(rig: Rig) -> None:
    await rig.one_group(scenario_limits=UsageLimits(concurrent=2), decodes=2)
    gate = rig.engines["p0"].gate = asyncio.Event()
    running = [asyncio.create_task(rig.complete(stream=k == 0)) for k in range(2)]
    dispatcher = rig.gateway.service.scheduler("tiny", {})[0].dispatcher
    await eventually(lambda: dispatcher.waiting == 1, "one is at the prefill, one waits")
    refused = await rig.complete()
    kind, message = limited(refused)
    assert kind == "requests"
    assert "requests in progress: Limit 2, Used 2" in message
    assert refused.headers["retry-after"] == "1"
    gate.set()
    assert {a.status for a in await asyncio.gather(*running)} == {200}
    assert (await rig.complete()).status == 200


async def test_whatever_ends_a_request_ends_its_place(rig: Rig) -> None:
    """Refused by an engine, failed, expired, gone: the next one is admitted."""
    await rig.one_group(scenario_limits=UsageLimits(concurrent=1))
    prefill, decode = rig.engines["p0"], rig.engines["d0"]
    prefill.script = ["400"]
    assert (await rig.complete()).status == 400
    decode.script = ["cut:2"]
    assert (await rig.complete(stream=True)).status == 200
    assert (await rig.complete(n=3)).status == 200
    assert (await rig.complete(prompt="x", stream_options=3)).status == 400
    gate = prefill.gate = asyncio.Event()
    left = asyncio.create_task(rig.complete())
    await eventually(lambda: prefill.running == 1, "it is at the prefill")
    assert (await rig.complete()).status == 429
    left.cancel()
    await eventually(lambda: not rig.gateway.server.connections, "its client is gone")
    gate.set()
    assert (await rig.complete()).status == 200


async def test_several_choices_are_one_request_of_all_their_tokens(rig: Rig, clock: Clock) -> None:
    limits = UsageLimits(requests=5, tokens=1000)
    await rig.one_group(scenario_limits=limits, clock=clock, decodes=2)
    answer = await rig.complete(prompt=[[1] * 10, [2] * 20], n=2, max_tokens=50)
    assert answer.status == 200
    assert answer.headers["x-ratelimit-remaining-requests"] == "4"
    assert answer.headers["x-ratelimit-remaining-tokens"] == str(1000 - 2 * 30 - 4 * 50)


async def test_a_key_has_its_own_limits_and_no_others(
    rig: Rig, clock: Clock, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("sk-alice requestsPerMinute=1\nsk-bob\n")
    await rig.one_group(keys=tmp_path, clock=clock)
    assert (await rig.complete(ALICE)).headers["x-ratelimit-remaining-requests"] == "0"
    assert "this API key on requests per min" in limited(await rig.complete(ALICE))[1]
    assert (await rig.complete({"x-api-key": "sk-alice"})).status == 429, "one key, one limit"
    for _ in range(3):
        answer = await rig.complete(BOB)
        assert answer.status == 200
        assert not [name for name in answer.headers if name.startswith("x-ratelimit")]
    labels = {"scope": "key", "reason": "requests"}
    assert await rig.metric("pdserve_gateway_limited_total", **labels) == 2


async def test_a_key_with_nothing_left_is_refused_by_its_head(
    rig: Rig, clock: Clock, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("sk-alice requestsPerMinute=1\nsk-bob\n")
    await rig.one_group(keys=tmp_path, clock=clock)
    assert (await rig.complete(ALICE)).status == 200
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n"
    writer.write(f"{head}authorization: Bearer sk-alice\r\n\r\n".encode())
    refused = parse_answer(await asyncio.wait_for(reader.readuntil(b"}}"), 60))
    writer.close()
    assert "this API key on requests per min" in limited(refused)[1]
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert (await rig.request("GET", "/v1/models", headers=ALICE)).status == 200
    assert (await rig.complete(BOB)).status == 200
    clock.now += 60.0
    assert (await rig.complete(ALICE)).status == 200


async def test_a_new_limit_of_a_key_holds_for_the_next_request(
    rig: Rig, clock: Clock, tmp_path: Path
) -> None:
    """Also where the old one refuses by the head, when no request comes to say the new one."""
    file = tmp_path / "keys"
    file.write_text("sk-alice concurrentRequests=1\n")
    await rig.one_group(keys=tmp_path, clock=clock)
    prefill = rig.engines["p0"]
    gate = prefill.gate = asyncio.Event()
    running = asyncio.create_task(rig.complete(ALICE))
    await eventually(lambda: prefill.running == 1, "it is at the prefill")
    assert (await rig.complete(ALICE, stream_options=3)).status == 429
    file.write_text("sk-alice concurrentRequests=100\n")
    for _ in range(3000):
        if (await rig.complete(ALICE, stream_options=3)).status == 400:
            break
        await asyncio.sleep(0.02)
    else:
        raise AssertionError("the old limit refuses until what runs has ended")
    gate.set()
    assert (await running).status == 200


async def test_key_and_scenario_count_together(rig: Rig, clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sk-alice requestsPerMinute=2\nsk-bob\n")
    limits = UsageLimits(requests=3)
    await rig.one_group(keys=tmp_path, clock=clock, scenario_limits=limits)
    assert (await rig.complete(ALICE)).headers["x-ratelimit-remaining-requests"] == "1"
    assert (await rig.complete(ALICE)).status == 200
    assert "this API key" in limited(await rig.complete(ALICE))[1]
    assert (await rig.complete(BOB)).status == 200, "the refusal cost the scenario nothing"
    assert "scenario 'chat'" in limited(await rig.complete(BOB))[1]


async def test_another_scenario_is_not_touched(rig: Rig, clock: Clock) -> None:
    await rig.one_group(clock=clock)
    chat = await rig.routes(list(rig.engines.values()), limits=UsageLimits(requests=1))
    (one,) = chat.scenarios
    named = dataclasses.replace(
        one, name="code", headers={"x-kind": "code"}, slo=SLO, limits=UsageLimits()
    )
    await rig.source.push(dataclasses.replace(chat, version=9, scenarios=(named, one)))
    assert (await rig.complete()).status == 200
    assert (await rig.complete()).status == 429
    for _ in range(3):
        assert (await rig.complete({"x-kind": "code"})).status == 200


async def test_a_new_limit_of_the_table_holds_at_once(rig: Rig, clock: Clock) -> None:
    await rig.one_group(scenario_limits=UsageLimits(requests=1), clock=clock)
    assert (await rig.complete()).status == 200
    assert (await rig.complete()).status == 429
    engines = list(rig.engines.values())
    await rig.routes(engines, limits=UsageLimits(requests=2))
    assert (await rig.complete()).status == 200
    assert (await rig.complete()).status == 429
    await rig.routes(engines)
    assert (await rig.complete()).status == 200


async def test_the_openai_sdk_raises_what_it_raises_for_openai(rig: Rig, clock: Clock) -> None:
    await rig.one_group(scenario_limits=UsageLimits(requests=1), clock=clock)
    url = f"http://127.0.0.1:{rig.port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=0) as client:
        raw = await client.completions.with_raw_response.create(model="tiny", prompt="hello")
        assert raw.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(openai.RateLimitError) as caught:
            await client.completions.create(model="tiny", prompt="hello")
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.type == "requests"


BAD_LIMITS = (
    "requestsPerMinute=", "requestsPerMinute=0", "requestsPerMinute=-1", "requestsPerMinute=1.5",
    "requestsPerMinute=1e3", "requestsPerMinute=many", "requestsPerMinute=1000000001",
    "requestsPerMinute=" + "9" * 60, "requestsPerMinute=٣", "requestsPerMinute=1=2",
    "requestsPerMinute=5 requestsPerMinute=6", "requestsperminute=5", "rpm=5", "=5", "=",
    "tokensPerMinute=5 concurrentRequests=x",
)  # fmt: skip


@pytest.mark.parametrize("bad", BAD_LIMITS)
def test_a_limit_that_cannot_be_read_refuses_its_key_alone(
    bad: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "keys").write_text(f"sk-good concurrentRequests=5\nsk-bad {bad}\nsk-free\n")
    ring = KeyRing(tmp_path)
    assert ring.counts == (2, 1)
    for key in ("sk-good", "sk-free"):
        ring.check(f"Bearer {key}".encode())
    for _ in range(40):
        with pytest.raises(ApiError) as caught:
            ring.check(b"Bearer sk-bad", None, "10.0.0.1")
        assert (caught.value.status, caught.value.code) == (403, "unreadable_limits")
    ring.check(b"Bearer sk-good", None, "10.0.0.1")
    assert ring.limits_of(tenant_of(b"Bearer sk-good", None)) == UsageLimits(concurrent=5)
    (told,) = [r.getMessage() for r in caplog.records]
    assert told.startswith("keys, line 2: ")
    assert "sk-bad" not in told


def test_a_key_that_stands_twice_has_the_lower_limits() -> None:
    one, two = keys_of(b"sk requestsPerMinute=5 tokensPerMinute=9\nsk requestsPerMinute=4 \n")
    assert one.limits is not None
    assert two.limits is not None
    assert one.limits.tighter(two.limits) == UsageLimits(4, 9, 0)
    assert two.limits.tighter(one.limits) == UsageLimits(4, 9, 0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0ms"), (0.0171, "18ms"), (1.0, "1s"), (7.655, "7.66s"), (59.999, "60s"),
     (60.0, "1m0s"), (359.2, "6m0s"), (90.0, "1m30s")],
)  # fmt: skip
def test_times_are_written_as_by_openai(seconds: float, text: str) -> None:
    assert duration(seconds) == text
