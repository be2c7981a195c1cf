"""Bad input: a clear OpenAI error each, nothing spent on it, nothing counted as offered."""

import asyncio
from typing import Any

import pytest
from tests.support.gateway_rig import PATIENCE, Rig, eventually, parse_answer
from tests.support.hostile_bodies import FIRST_LINE, attack

from pdserve.http1.limits import ClientLimits
from pdserve.wire import metrics as names

C, M = "/v1/completions", "/v1/chat/completions"
OK: dict[str, Any] = {"model": "tiny", "prompt": "x"}
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
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
    ("too many prompts", C, {**OK, "prompt": ["a"] * 129}, 400, "at most 128 choices"),
    ("a prompt of prompts", C, {**OK, "prompt": ["a", {}]}, 400, "must be a string or a list of"),
    ("prompt of objects", C, {**OK, "prompt": [{}]}, 400, "token ids"),
    ("no messages", M, {"model": "tiny"}, 400, "non-empty list"),
    ("messages is text", M, {**CHAT, "messages": "hi"}, 400, "non-empty list"),
    ("message without role", M, {**CHAT, "messages": [{"content": "x"}]}, 400, "with a role"),
    ("no choices", C, {**OK, "n": 0}, 400, "n must be an integer >= 1, not 0"),
    ("choices as bool", C, {**OK, "n": True}, 400, "not True"),
    ("choices as text", M, {**CHAT, "n": "2"}, 400, "not '2'"),
    ("many choices", M, {**CHAT, "n": 129}, 400, "at most 128 choices per request, not 129"),
    ("of many prompts", C, {**OK, "prompt": ["a", "b"], "n": 65}, 400, "not 130"),
    ("best of two", C, {**OK, "best_of": 2}, 400, "best_of=2"),
    ("best of four", C, {**OK, "n": 2, "best_of": 4}, 400, "best_of=4"),
    ("no tokens", C, {**OK, "max_tokens": 0}, 400, "max_tokens must be an integer >= 1, not 0"),
    ("tokens as text", C, {**OK, "max_tokens": "9"}, 400, "not '9'"),
    ("tokens as bool", M, {**CHAT, "max_completion_tokens": True}, 400, "not True"),
    ("negative min_tokens", C, {**OK, "min_tokens": -1}, 400, "min_tokens"),
    ("more min_tokens than tokens", C, {**OK, "min_tokens": 2, "max_tokens": 1}, 400, "at most 1"),
    ("echo with logprobs", C, {**OK, "echo": True, "logprobs": 1}, 400, "prompt logprobs"),
    ("beam search", C, {**OK, "use_beam_search": True}, 400, "moves no KV"),
    ("beam search as text", M, {**CHAT, "use_beam_search": "yes"}, 400, "moves no KV"),
    ("prompt logprobs", C, {**OK, "prompt_logprobs": 0}, 400, "computed anew by the decode"),
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
        if not await asyncio.wait_for(reader.read(), PATIENCE):
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


@pytest.mark.invariant(11)
@pytest.mark.parametrize("seed", range(4))
async def test_no_body_hurts_the_gateway_or_another_request(rig: Rig, seed: int) -> None:
    """500 bodies each: no 5xx, no closed connection; then nothing is held and all is as before."""
    await rig.one_group(prefills=2, decodes=2)
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


@pytest.mark.interpreted
@pytest.mark.invariant(11)
@pytest.mark.parametrize("fault", ["offer", "prefill", "post"])
async def test_a_fault_of_our_own_costs_one_request_and_nothing_stays(
    rig: Rig, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever raises between the offer and the end: the room is empty, no slot is counted."""
    await rig.one_group()
    scheduler = rig.gateway.service.scheduler("tiny", {})[0]

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        if fault == "offer":
            patch.setattr(scheduler, "await_prefill", broken)
        elif fault == "prefill":
            patch.setattr(scheduler.view, "group", broken)
        else:
            patch.setattr(rig.gateway.pool, "send", broken)
        assert (await rig.complete()).status == 500
    assert scheduler.dispatcher.waiting == 0
    assert all(i.used == 0 for i in scheduler.view.instances())
    assert (await rig.complete()).status == 200


async def test_a_ticket_without_a_waiter_hurts_no_other_request(rig: Rig) -> None:
    await rig.one_group()
    scheduler = rig.gateway.service.scheduler("tiny", {})[0]
    for deadline in (0.0, 1e12):
        assert scheduler.dispatcher.offer(deadline) is not None
        assert [(await rig.complete()).status for _ in range(3)] == [200] * 3
        assert scheduler.dispatcher.waiting == 0
        assert all(i.used == 0 for i in scheduler.view.instances())


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
