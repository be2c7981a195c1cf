"""Bad input: a clear OpenAI error each, nothing spent on it, nothing counted as offered."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.support.gateway_rig import Rig, eventually, parse_answer
from tests.support.hostile_bodies import FIRST_LINE, attack

from pdserve.http1.limits import ClientLimits
from pdserve.terms import Slo
from pdserve.wire import metrics as names
from pdserve.wire.links import largest_body

C, M = "/v1/completions", "/v1/chat/completions"
OK: dict[str, Any] = {"model": "tiny", "prompt": "x"}
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
WIDE = Slo(ttft=60.0, handoff=60.0, tpot=60.0, attainment=0.99)
"""Targets that a machine meets however busy it is."""

DEEP_FIELD, DEEP_MESSAGE = (FIRST_LINE[i][1].replace(b"%m", b"tiny") for i in (1, 3))
DEEP_MODEL = b'{"model":' + b"[" * 900 + b"]" * 900 + b"}"

BAD = [
    ("not json", C, b"{nope", 400, "not JSON"),
    ("empty body", C, b"", 400, "not JSON"),
    ("not utf-8", C, b'{"model": "\xff"}', 400, "not JSON"),
    ("too deep", C, b"[" * 5000, 400, "not JSON"),
    ("deep", C, DEEP_FIELD, 400, "nested deeper than 64"),
    ("deep in a message", M, DEEP_MESSAGE, 400, "nested deeper than 64"),
    ("deep where a name is due", C, DEEP_MODEL, 400, "nested deeper than 64"),
    ("no min_tokens", C, {**OK, "min_tokens": None}, 400, "min_tokens must be an integer >= 0"),
    ("messages to completions", C, {**OK, "messages": 5}, 400, "belongs to /v1/chat/completions"),
    ("prompt to chat", M, {**CHAT, "prompt": 5}, 400, "belongs to /v1/completions"),
    ("messages is a number", M, {**CHAT, "messages": 5}, 400, "non-empty list"),
    ("a list", C, [1], 400, "must be a JSON object, not list"),
    ("no model", C, {"prompt": "x"}, 400, "model must be a non-empty string, not None"),
    ("model is a number", C, {**OK, "model": 3}, 400, "not 3"),
    ("unknown model", C, {**OK, "model": "gpt-9"}, 404, "model 'gpt-9'"),
    ("unknown model names the known", M, {**CHAT, "model": "x"}, 404, "chat (model 'tiny')"),
    ("no prompt", C, {"model": "tiny"}, 400, "prompt must be a string"),
    ("empty prompt list", C, {**OK, "prompt": []}, 400, "non-empty list"),
    ("two prompts", C, {**OK, "prompt": ["a", "b"]}, 400, "one prompt per request, not 2"),
    ("prompt of objects", C, {**OK, "prompt": [{}]}, 400, "token ids"),
    ("no messages", M, {"model": "tiny"}, 400, "non-empty list"),
    ("messages is text", M, {**CHAT, "messages": "hi"}, 400, "non-empty list"),
    ("message without role", M, {**CHAT, "messages": [{"content": "x"}]}, 400, "with a role"),
    ("two choices", C, {**OK, "n": 2}, 400, "n=2: one choice per request"),
    ("best of two", C, {**OK, "best_of": 2}, 400, "best_of=2"),
    ("no tokens", C, {**OK, "max_tokens": 0}, 400, "max_tokens must be an integer >= 1, not 0"),
    ("tokens as text", C, {**OK, "max_tokens": "9"}, 400, "not '9'"),
    ("tokens as bool", M, {**CHAT, "max_completion_tokens": True}, 400, "not True"),
    ("negative min_tokens", C, {**OK, "min_tokens": -1}, 400, "min_tokens"),
    ("echo with logprobs", C, {**OK, "echo": True, "logprobs": 1}, 400, "prompt logprobs"),
    ("stream as text", C, {**OK, "stream": "yes"}, 400, "stream must be true or false"),
    ("stream options alone", C, {**OK, "stream_options": {}}, 400, "only allowed with stream"),
    ("bad stream options", C, {**OK, "stream": True, "stream_options": 1}, 400, "an object"),
    ("odd usage", C, {**OK, "stream": True, "stream_options": {"include_usage": 1}}, 400, "true"),
    ("unknown path", "/v1/embeddings", OK, 404, "no such path: /v1/embeddings"),
    ("too large", C, {**OK, "prompt": "x" * 70_000}, 413, "limit of 65536 bytes"),
]


@pytest.mark.parametrize(
    ("path", "body", "status", "says"), [c[1:] for c in BAD], ids=[c[0] for c in BAD]
)
async def test_refused_with_the_reason(
    rig: Rig, path: str, body: Any, status: int, says: str
) -> None:
    await rig.one_group()
    answer = await rig.request("POST", path, body)
    assert answer.status == status
    error = answer.json["error"]
    assert says in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    if status != 413:  # refused before it was a request
        assert answer.headers["x-request-id"]
    assert all(not e.seen for e in rig.engines.values())
    assert await rig.metric(names.GATEWAY_OFFERED) == 0


async def test_wrong_method(rig: Rig) -> None:
    await rig.one_group()
    answer = await rig.request("GET", C)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("head", [b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"])
async def test_malformed_http(rig: Rig, head: bytes) -> None:
    await rig.one_group()
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.write(head)
    answer = parse_answer(await reader.read())
    writer.close()
    assert answer.status == 400
    assert "malformed HTTP" in answer.json["error"]["message"]


async def test_body_over_the_limit_is_refused_by_its_declared_length(rig: Rig) -> None:
    await rig.one_group()
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\ncontent-length: 99999999\r\n\r\n")
    answer = parse_answer(await reader.read())
    writer.close()
    assert answer.status == 413


async def test_chunked_body_over_the_limit_is_refused(rig: Rig) -> None:
    await rig.one_group()
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n")
    for _ in range(3):
        writer.write(b"8000\r\n" + b"x" * 0x8000 + b"\r\n")
    answer = parse_answer(await reader.read())
    writer.close()
    assert answer.status == 413


async def test_head_over_the_limit_is_refused(rig: Rig) -> None:
    await rig.one_group()
    answer = await rig.complete(headers={f"x-{i}": "v" * 1000 for i in range(40)})
    assert answer.status == 431


async def test_a_request_that_offers_an_upgrade_is_served(rig: Rig) -> None:
    """Java's client and `curl --http2` offer h2c with a first request."""
    await rig.one_group()
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    body = b'{"model": "tiny", "prompt": "p"}'
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )
    writer.write(b"GET /healthz HTTP/1.1\r\nconnection: close\r\n\r\n")
    raw = await reader.read()
    writer.close()
    assert raw.count(b"HTTP/1.1 200 OK") == 2
    assert raw.endswith(b"ok\n")


async def test_expect_continue_is_honoured(rig: Rig) -> None:
    await rig.one_group()
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    body = b'{"model":"tiny","prompt":"x"}'
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nexpect: 100-continue\r\nconnection: close\r\n"
        b"content-length: %d\r\n\r\n" % len(body)
    )
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert parse_answer(await reader.read()).status == 200
    writer.close()


async def test_a_request_that_never_completes_is_cut(rig: Rig) -> None:
    await rig.one_group(limits=ClientLimits(receive=0.05, sweep=0.02))
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\ncontent-le")
    with pytest.raises(ConnectionError):
        # A reset, or (some kernels) a plain end without a byte.
        if not await asyncio.wait_for(reader.read(), 5):
            raise ConnectionResetError
    writer.close()


async def test_engine_s_own_refusal_is_passed_on_and_not_offered(rig: Rig) -> None:
    await rig.one_group()
    rig.engines["p0"].script = ["422"]
    answer = await rig.complete()
    assert answer.status == 422
    assert answer.json["error"] == {
        "message": "scripted 422", "type": "scripted", "param": None, "code": None,
    }  # fmt: skip
    rig.engines["d0"].script = ["400"]
    answer = await rig.complete(stream=True)
    assert answer.status == 400
    await eventually(lambda: not rig.engines["p0"].held, "KV released")
    assert await rig.metric(names.GATEWAY_OFFERED) == 0


async def test_no_route_table_yet(rig: Rig) -> None:
    await rig.start()
    answer = await rig.complete()
    assert (answer.status, answer.json["error"]["code"]) == (503, "not_ready")
    assert (await rig.request("GET", "/readyz")).status == 503
    assert (await rig.request("GET", "/healthz")).status == 200


async def test_keys_from_a_directory_that_changes(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "alice").write_text("sk-alice\n")
    (tmp_path / "..data").mkdir()
    await rig.one_group(keys=tmp_path)

    async def status(key: str | None) -> int:
        headers = {"authorization": key} if key else {}
        return (await rig.complete(headers=headers)).status

    assert await status("Bearer sk-alice") == 200
    assert await status("bearer sk-alice") == 200
    for wrong in (None, "Bearer sk-mallory", "Bearer ", "Basic sk-alice", "sk-alice"):
        assert await status(wrong) == 401
    refused = await rig.request("GET", "/v1/models")
    assert (refused.status, refused.json["error"]["code"]) == (401, "invalid_api_key")
    assert (await rig.request("GET", "/metrics")).status == 200

    (tmp_path / "bob").write_text("sk-bob")
    (tmp_path / "alice").unlink()
    for _ in range(200):
        if await status("Bearer sk-bob") == 200:
            break
        await asyncio.sleep(0.05)
    assert await status("Bearer sk-bob") == 200
    assert await status("Bearer sk-alice") == 401


async def test_a_key_where_a_proxy_keeps_authorization(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "alice").write_text("sk-alice\n")
    await rig.one_group(keys=tmp_path)

    async def status(**headers: str) -> int:
        return (
            await rig.complete(headers={k.replace("_", "-"): v for k, v in headers.items()})
        ).status

    assert await status(x_api_key="sk-alice") == 200
    assert await status(x_api_key=" sk-alice ") == 200
    for wrong in ("", "sk-mallory", "Bearer sk-alice"):
        assert await status(x_api_key=wrong) == 401
    # Authorization counts where it is: a wrong one is not saved by the other header.
    assert await status(authorization="Bearer sk-alice", x_api_key="no") == 200
    assert await status(authorization="Bearer no", x_api_key="sk-alice") == 401


async def test_a_directory_without_keys_refuses_every_request(rig: Rig, tmp_path: Path) -> None:
    await rig.one_group(keys=tmp_path)
    assert (await rig.complete(headers={"authorization": "Bearer "})).status == 401


@pytest.mark.invariant(11)
@pytest.mark.parametrize("seed", range(4))
async def test_no_body_hurts_the_gateway_or_another_request(rig: Rig, seed: int) -> None:
    """500 bodies each: no 5xx, no closed connection; then nothing is held and all is as before."""
    await rig.one_group(prefills=2, decodes=2, slo=WIDE)
    tally = await attack("127.0.0.1", rig.port, seed, 500)
    assert tally.faults == []
    assert tally.statuses[400] > 200
    assert tally.statuses[200] > 20
    scheduler = rig.gateway.service.scheduler("tiny", {})[0]
    assert scheduler.dispatcher.waiting == 0
    await eventually(lambda: all(i.used == 0 for i in scheduler.view.instances()), "slots free")
    await eventually(lambda: not any(e.used for e in rig.engines.values()), "nothing held")
    answers = await asyncio.gather(*(rig.complete() for _ in range(20)))
    assert [a.status for a in answers] == [200] * 20


@pytest.mark.invariant(11)
@pytest.mark.parametrize("fault", ["offer", "prefill", "post"])
async def test_a_fault_of_our_own_costs_one_request_and_nothing_stays(
    rig: Rig, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever raises between the offer and the end: the room is empty, no slot is counted."""
    await rig.one_group(slo=WIDE)
    scheduler = rig.gateway.service.scheduler("tiny", {})[0]

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        if fault == "offer":
            patch.setattr(scheduler, "prefill", broken)
        elif fault == "prefill":
            patch.setattr(scheduler.view, "group", broken)
        else:
            patch.setattr(rig.gateway.pool, "post", broken)
        assert (await rig.complete()).status == 500
    assert scheduler.dispatcher.waiting == 0
    assert all(i.used == 0 for i in scheduler.view.instances())
    assert (await rig.complete()).status == 200


async def test_a_ticket_without_a_waiter_hurts_no_other_request(rig: Rig) -> None:
    await rig.one_group(slo=WIDE)
    scheduler = rig.gateway.service.scheduler("tiny", {})[0]
    for deadline in (0.0, 1e12):
        assert scheduler.dispatcher.offer(deadline) is not None
        assert [(await rig.complete()).status for _ in range(3)] == [200] * 3
        assert scheduler.dispatcher.waiting == 0
        assert all(i.used == 0 for i in scheduler.view.instances())


@pytest.mark.invariant(10)
async def test_bodies_in_progress_are_bounded_in_bytes_and_small_ones_pass(rig: Rig) -> None:
    """Waiting, being received or served: whatever it is counts until it is gone."""
    await rig.one_group(slo=WIDE, limits=ClientLimits(memory=600_000))
    prefill = rig.engines["p0"]
    prefill.gate = asyncio.Event()
    large = "x" * 100_000
    memory = rig.gateway.server.memory
    waiting = [asyncio.create_task(rig.complete(prompt=large))]
    await eventually(lambda: prefill.running == 1, "one is served")
    refused = await rig.complete(prompt=large)
    assert (refused.status, refused.json["error"]["code"]) == (503, "receiving_too_much")
    assert int(refused.headers["retry-after"]) >= 1
    waiting.append(asyncio.create_task(rig.complete()))
    scheduler = rig.gateway.service.scheduler("tiny", {})[0]
    await eventually(lambda: scheduler.dispatcher.waiting == 1, "a small one waits in the room")
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: 300000\r\n\r\n" + b"x" * 290_000
    )
    answer = parse_answer(await reader.readuntil(b"}}"))
    assert (answer.status, answer.json["error"]["code"]) == (503, "receiving_too_much")
    writer.close()
    full = await rig.complete(tools=[[]] * 5000)
    assert (full.status, full.json["error"]["code"]) == (503, "too_much_at_once")
    many = await rig.complete(tools=[{}] * 2500)
    assert (many.status, many.json["error"]["message"]) == (413, "the body holds too many values")
    prefill.gate.set()
    assert [a.status for a in await asyncio.gather(*waiting)] == [200, 200]
    await eventually(lambda: memory.used == 0, "nothing is counted any more")
    assert (await rig.complete(prompt=large)).status == 200


@pytest.mark.invariant(12)
async def test_what_a_client_that_left_had_sent_is_not_counted(rig: Rig) -> None:
    await rig.one_group(limits=ClientLimits())
    memory = rig.gateway.server.memory
    _, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    head = b"POST /v1/completions HTTP/1.1\r\ncontent-length: 100000\r\n\r\n"
    writer.write(head + b"x" * 50_000)
    await eventually(lambda: memory.used > 0, "counted")
    writer.close()
    await eventually(lambda: memory.used == 0, "forgotten")
    stream = asyncio.create_task(rig.complete(stream=True, prompt="y" * 200_000, max_tokens=500))
    rig.engines["d0"].token_seconds = 600.0
    await eventually(lambda: rig.engines["d0"].running == 1, "a stream")
    await eventually(lambda: memory.used == 0, "a stream that has begun keeps no body")
    stream.cancel()


@pytest.mark.parametrize("kind", ["complete", "ids", "messages"])
async def test_a_prompt_that_fits_into_no_context_reaches_no_engine(rig: Rig, kind: str) -> None:
    made = [await rig.engine("prefill", "p0"), await rig.engine("decode", "d0")]
    await rig.start()
    await rig.routes(made, max_prompt_bytes=1000)
    fits, long = ("\u00e9" * 500, "\u00e9" * 500 + "x")
    if kind == "ids":
        answers = [await rig.complete(prompt=[5] * count) for count in (1000, 1001)]
    elif kind == "messages":
        # The message itself counts as one.
        answers = [
            await rig.chat(messages=[{"role": "user", "content": text}])
            for text in ("\u00e9" * 499 + "x", fits)
        ]
    else:
        answers = [await rig.complete(prompt=text) for text in (fits, long)]
    assert [a.status for a in answers] == [200, 400]
    error = answers[1].json["error"]
    assert error["code"] == "context_length_exceeded"
    assert "1001 bytes of text, ids and messages, and at most 1000 fit" in error["message"]
    assert made[0].events["attempts"] == 1
    assert await rig.metric(names.GATEWAY_OFFERED) == 1


@pytest.mark.invariant(10)
async def test_a_body_that_holds_no_prompt_that_fits_is_not_parsed(rig: Rig) -> None:
    made = [await rig.engine("prefill", "p0"), await rig.engine("decode", "d0")]
    await rig.start(limits=ClientLimits())
    await rig.routes(made, max_prompt_bytes=1000)
    most = largest_body(1000)
    small = b'{"model":"tiny","prompt":"x"}'
    fits = small + b" " * (most - len(small))
    assert (await rig.request("POST", C, fits)).status == 200
    for body in (fits + b" ", b"[" * (most + 1)):
        answer = await rig.request("POST", C, body)
        assert (answer.status, answer.json["error"]["code"]) == (400, "context_length_exceeded")
        assert f"{most + 1} bytes; one with a prompt that fits has at most {most}" in str(
            answer.json
        )
    await rig.routes(made)
    assert (await rig.request("POST", C, fits + b" ")).status == 200, "no bound is known"


@pytest.mark.invariant(10)
async def test_unfinished_heads_are_bounded_in_bytes_too(rig: Rig) -> None:
    await rig.one_group(limits=ClientLimits(memory=200_000))
    memory = rig.gateway.server.memory
    writers, answers = [], []
    for _ in range(12):
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nx-a: " + b"v" * 20_000)
        writers.append(writer)
        answers.append(asyncio.create_task(reader.read()))
    await eventually(lambda: sum(a.done() for a in answers) >= 7, "most are refused")
    assert memory.used <= 100_000
    refused = [parse_answer(a.result()) for a in answers if a.done()]
    assert {(a.status, a.json["error"]["code"]) for a in refused} == {(503, "receiving_too_much")}
    assert (await rig.complete()).status == 200
    for writer in writers:
        writer.close()
    await eventually(lambda: memory.used == 0, "nothing is counted any more")


async def test_a_refused_head_has_no_body(rig: Rig) -> None:
    """Not even where the head itself was refused: after HEAD a body is the next reply."""
    await rig.one_group()
    answer = await rig.request("HEAD", "/health", headers={"x": "y" * 70_000})
    assert (answer.status, answer.body) == (431, b"")
    assert int(answer.headers["content-length"]) > 0


async def test_a_message_s_role_is_named(rig: Rig) -> None:
    await rig.one_group()
    roles: tuple[object, ...] = (None, 5, {}, [])
    for role in roles:
        answer = await rig.chat(messages=[{"role": "user", "content": "x"}, {"role": role}])
        assert (answer.status, answer.json["error"]["param"]) == (400, "messages[1].role")
