"""What is wrong with a request is said with the field, the value and what would be right."""

from __future__ import annotations

import socket
from typing import Any

import orjson
import pytest
import pytest_asyncio
from tests.support.engines import Client, EngineProcess, Reply, until

from pdserve.wire import calls

COMPLETION: dict[str, Any] = {"model": "reference", "prompt": "Hello", "max_tokens": 2}
CHAT: dict[str, Any] = {
    "model": "reference",
    "messages": [{"role": "user", "content": "Hi"}],
    "max_tokens": 2,
}
GONE = object()

# name: (endpoint, changes to a good body, status, param, part of the message)
CASES: dict[str, tuple[str, dict[str, Any], int, str | None, str]] = {
    "model missing": ("c", {"model": GONE}, 400, "model", "a string is required"),
    "model of another type": ("c", {"model": 3}, 400, "model", "3 is not valid"),
    "another model": ("c", {"model": "gpt"}, 404, "model", "'gpt' does not exist"),
    "prompt missing": ("c", {"prompt": GONE}, 400, "prompt", "a string or a non-empty list"),
    "prompt empty list": ("c", {"prompt": []}, 400, "prompt", "non-empty"),
    "prompt list of prompts": ("c", {"prompt": ["a", "b"]}, 400, "prompt", "one prompt per"),
    "prompt token too large": ("c", {"prompt": [5, 99999]}, 400, "prompt", "0 to 2047"),
    "prompt token negative": ("c", {"prompt": [-1]}, 400, "prompt", "-1 is not valid"),
    "prompt of mixed types": ("c", {"prompt": [5, "a"]}, 400, "prompt", "one prompt per"),
    "prompt a number": ("c", {"prompt": 5}, 400, "prompt", "a string"),
    "prompt too long": ("c", {"prompt": [5] * 2048}, 400, "prompt", "has 2048 tokens"),
    "no room for max_tokens": (
        "c",
        {"prompt": [5] * 2000, "max_tokens": 100},
        400,
        "max_tokens",
        "at most 48",
    ),
    "max_tokens zero": ("c", {"max_tokens": 0}, 400, "max_tokens", "from 1"),
    "max_tokens text": ("c", {"max_tokens": "9"}, 400, "max_tokens", "'9' is not valid"),
    "max_tokens fraction": ("c", {"max_tokens": 1.5}, 400, "max_tokens", "an integer"),
    "max_tokens boolean": ("c", {"max_tokens": True}, 400, "max_tokens", "an integer"),
    "max_completion_tokens wins": (
        "h",
        {"max_completion_tokens": -3},
        400,
        "max_completion_tokens",
        "-3",
    ),
    "min_tokens above max": ("c", {"min_tokens": 3}, 400, "min_tokens", "at most max_tokens = 2"),
    "temperature high": ("c", {"temperature": 2.1}, 400, "temperature", "from 0 to 2"),
    "temperature text": ("c", {"temperature": "hot"}, 400, "temperature", "a number"),
    "top_p zero": ("c", {"top_p": 0}, 400, "top_p", "a number from"),
    "top_p above one": ("c", {"top_p": 1.01}, 400, "top_p", "to 1"),
    "top_k fraction": ("c", {"top_k": 0.5}, 400, "top_k", "an integer"),
    "seed text": ("c", {"seed": "x"}, 400, "seed", "an integer"),
    "n": ("c", {"n": 2}, 400, "n", "one choice per request"),
    "best_of": ("c", {"best_of": 4}, 400, "best_of", "one choice per request"),
    "echo": ("c", {"echo": True}, 400, "echo", "not implemented"),
    "presence_penalty": ("c", {"presence_penalty": 0.5}, 400, "presence_penalty", "penalties"),
    "logit_bias": ("h", {"logit_bias": {"5": 1}}, 400, "logit_bias", "not implemented"),
    "tools": ("h", {"tools": [{"type": "function"}]}, 400, "tools", "not implemented"),
    "response_format": (
        "h",
        {"response_format": {"type": "json_object"}},
        400,
        "response_format",
        "only",
    ),
    "stop number": ("c", {"stop": 5}, 400, "stop", "a non-empty string"),
    "stop empty": ("c", {"stop": ["a", ""]}, 400, "stop", "a non-empty string"),
    "stop too many": ("c", {"stop": ["x"] * 17}, 400, "stop", "at most 16"),
    "stop_token_ids": ("c", {"stop_token_ids": [9999]}, 400, "stop_token_ids", "0 to 2047"),
    "logprobs boolean in completions": ("c", {"logprobs": True}, 400, "logprobs", "an integer"),
    "logprobs too many": ("c", {"logprobs": 21}, 400, "logprobs", "from 0 to 20"),
    "logprobs number in chat": ("h", {"logprobs": 1}, 400, "logprobs", "true or false"),
    "top_logprobs alone": ("h", {"top_logprobs": 2}, 400, "top_logprobs", "needs logprobs"),
    "stream text": ("c", {"stream": "yes"}, 400, "stream", "true or false"),
    "stream_options without stream": (
        "c",
        {"stream_options": {"include_usage": True}},
        400,
        "stream_options",
        "stream: true",
    ),
    "stream_options list": (
        "c",
        {"stream": True, "stream_options": []},
        400,
        "stream_options",
        "an object",
    ),
    "include_usage text": (
        "c",
        {"stream": True, "stream_options": {"include_usage": 1}},
        400,
        "stream_options.include_usage",
        "true or false",
    ),
    "ignore_eos number": ("c", {"ignore_eos": 1}, 400, "ignore_eos", "true or false"),
    "messages missing": ("h", {"messages": GONE}, 400, "messages", "a non-empty list"),
    "messages empty": ("h", {"messages": []}, 400, "messages", "a non-empty list"),
    "message a string": ("h", {"messages": ["Hi"]}, 400, "messages[0]", "an object"),
    "message without role": (
        "h",
        {"messages": [{"content": "Hi"}]},
        400,
        "messages[0].role",
        "one of system",
    ),
    "message of unknown role": (
        "h",
        {"messages": [{"role": "tool", "content": "1"}]},
        400,
        "messages[0].role",
        "'tool'",
    ),
    "message without content": (
        "h",
        {"messages": [{"role": "user"}]},
        400,
        "messages[0].content",
        "a string or",
    ),
    "message with an image": (
        "h",
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        "messages[0].content[0]",
        "only {",
    ),
    "hand over": (
        "c",
        {calls.PARAM_KV: {"do_remote_decode": True}},
        400,
        calls.PARAM_KV,
        "role both",
    ),
    "remote KV": (
        "c",
        {calls.PARAM_KV: {"do_remote_prefill": True}},
        400,
        calls.PARAM_KV,
        "does not pull",
    ),
    "params not an object": ("c", {calls.PARAM_KV: [1]}, 400, calls.PARAM_KV, "an object"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> Any:
    """One aggregated engine for the whole table."""
    made, client = EngineProcess("both", ("--max-body-bytes", "20000")), Client()
    made.start()
    try:
        await until(lambda: client.up(made), "engine listens")
        yield made
    finally:
        made.kill()
        await client.close()


def changed(body: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = body | changes
    return {k: v for k, v in merged.items() if v is not GONE}


@pytest.mark.parametrize("case", CASES)
async def test_refused_with_field_and_reason(
    case: str, engine: EngineProcess, client: Client
) -> None:
    endpoint, changes, status, param, message = CASES[case]
    path, good = (
        (calls.PATH_COMPLETIONS, COMPLETION) if endpoint == "c" else (calls.PATH_CHAT, CHAT)
    )
    reply: Reply = await client.call("POST", engine.url + path, changed(good, changes))
    error = reply.body["error"]
    assert reply.status == status, error
    assert error["param"] == param, error
    assert message in error["message"], error
    assert error["type"] == "invalid_request_error"
    assert (await client.call("POST", engine.url + path, good)).status == 200


DECODE_CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "nothing of ours": ({"pdserve": None}, "kv_transfer_params.pdserve", "prefill's reply"),
    "no tokens": ({"remote_num_tokens": None}, "kv_transfer_params.remote_num_tokens", ">= 1"),
    "too many tokens": ({"remote_num_tokens": 5000, "position": 5000}, "prompt", "5000 tokens"),
    "no engine": ({"remote_engine_id": ""}, "kv_transfer_params.remote_engine_id", "non-empty"),
    "no first token": (
        {"first_token_ids": []},
        "kv_transfer_params.pdserve.first_token_ids",
        "one token id",
    ),
    "first token too large": (
        {"first_token_ids": [2048]},
        "kv_transfer_params.pdserve.first_token_ids",
        "0 to 2047",
    ),
    "another position": ({"position": 4}, "kv_transfer_params.pdserve.position", "must be"),
    "no seed": ({"seed": None}, "kv_transfer_params.pdserve.seed", "an integer"),
    "bad logprobs": ({"first_top_logprobs": [3]}, "kv_transfer_params.pdserve", "malformed"),
    **{
        f"generation {value!r}": (
            {"generation": value},
            "kv_transfer_params.pdserve.generation",
            "an integer from 0 to",
        )
        for value in (-1, 1 << 53, "1", 1.5, True, None)
    },
}


@pytest.mark.parametrize("case", DECODE_CASES)
def test_bad_handover_parameters(case: str, model: Any) -> None:
    from pdserve.http1.errors import ApiError
    from pdserve.refengine.api import openai

    changes, param, message = DECODE_CASES[case]
    ours: Any = {"first_token_ids": [9], "seed": 1, "position": 3, "cached_tokens": 0}
    params: dict[str, Any] = {
        "do_remote_prefill": True,
        "remote_engine_id": "p",
        "remote_request_id": "r",
        "remote_num_tokens": 3,
        "pdserve": ours,
    }
    for name, value in changes.items():
        (params if name in params else ours)[name] = value
    limits = openai.RequestLimits("decode", "reference", 2048, 1 << 20)
    raw = orjson.dumps(COMPLETION | {calls.PARAM_KV: params})
    with pytest.raises(ApiError, match=message) as raised:
        openai.read("completion", raw, model, limits).request("r", None, [])
    assert (raised.value.status, raised.value.param) == (400, param)


BODIES: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 400, "not JSON"),
    "cut off": (b'{"model": "reference"', 400, "not JSON"),
    "a list": (b"[]", 400, "not an object"),
    "not utf-8": (b'{"model": "\xff"}', 400, "not JSON"),
    "NaN": (b'{"model": "reference", "prompt": "a", "temperature": NaN}', 400, "not JSON"),
    "too large": (b'{"prompt": "' + b"x" * 30000 + b'"}', 413, "limit of 20000 bytes"),
}


@pytest.mark.parametrize("case", BODIES)
async def test_bodies_that_cannot_be_read(case: str, engine: EngineProcess, client: Client) -> None:
    raw, status, message = BODIES[case]
    reply = await client.call("POST", engine.url + calls.PATH_COMPLETIONS, raw)
    assert reply.status == status
    assert message in reply.body["error"]["message"]


REQUESTS: dict[str, tuple[str, str, int]] = {
    "unknown path": ("GET", "/v2/nothing", 404),
    "wrong method": ("GET", calls.PATH_COMPLETIONS, 405),
    "unknown model": ("GET", "/v1/models/other", 404),
    "known model": ("GET", "/v1/models/reference", 200),
    "models with a query": ("GET", "/v1/models?limit=3", 200),
    "table of another shape": ("PUT", calls.PATH_PEERS, 400),
}


@pytest.mark.parametrize("case", REQUESTS)
async def test_paths(case: str, engine: EngineProcess, client: Client) -> None:
    method, path, status = REQUESTS[case]
    body = {"schemaVersion": 9} if method == "PUT" else None
    reply = await client.call(method, engine.url + path, body)
    assert reply.status == status, reply.body


@pytest.mark.parametrize(
    "path", [calls.PATH_LINKS, calls.PATH_DRAIN, calls.PATH_PEERS, calls.PATH_RELEASE]
)
async def test_control_needs_the_token(path: str, engine: EngineProcess, client: Client) -> None:
    method = {calls.PATH_LINKS: "GET", calls.PATH_PEERS: "PUT"}.get(path, "POST")
    for token in (None, "wrong"):
        reply = await client.call(method, engine.url + path, {}, token=token)
        assert (reply.status, reply.body["error"]["code"]) == (401, "unauthorized")


RAW: dict[str, tuple[bytes, bytes]] = {
    "upgrade": (
        b"POST /v1/completions HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n"
        b"content-length: 2\r\n\r\n{}",
        b"HTTP/1.1 400",
    ),
    "not http": (b"hello\r\n\r\n", b"HTTP/1.1 400"),
    "endless headers": (
        b"GET / HTTP/1.1\r\n" + b"a: " + b"x" * 70000 + b"\r\n\r\n",
        b"HTTP/1.1 431",
    ),
    "chunked and too large": (
        b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
        + b"4000\r\n"
        + b"x" * 0x4000
        + b"\r\n"
        + b"4000\r\n"
        + b"x" * 0x4000
        + b"\r\n",
        b"HTTP/1.1 413",
    ),
    "announced too large": (
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: 99999999\r\n\r\n",
        b"HTTP/1.1 413",
    ),
}


@pytest.mark.parametrize("case", RAW)
def test_raw_bytes(case: str, engine: EngineProcess) -> None:
    sent, want = RAW[case]
    with socket.create_connection((engine.host, 8000), timeout=60) as connection:
        connection.sendall(sent)
        assert connection.recv(4096).startswith(want)


def test_pipelined_requests_are_answered_in_order(engine: EngineProcess) -> None:
    one = orjson.dumps(COMPLETION | {"max_tokens": 5, "ignore_eos": True})
    head = f"POST /v1/completions HTTP/1.1\r\ncontent-length: {len(one)}\r\n\r\n".encode()
    last = b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n"
    with socket.create_connection((engine.host, 8000), timeout=60) as connection:
        connection.sendall(head + one + head + one + last)
        data = b""
        while piece := connection.recv(65536):
            data += piece
    assert data.count(b"HTTP/1.1 200") == 3
    assert data.rindex(b"text_completion") < data.index(b'"status":"ok"')


def test_many_short_pipelined_requests_are_all_answered(engine: EngineProcess) -> None:
    """One after another, however many arrive at once: not one inside the other."""
    with socket.create_connection((engine.host, 8000), timeout=60) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n\r\n" * 2000)
        connection.sendall(b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n")
        data = b""
        while piece := connection.recv(65536):
            data += piece
    assert data.count(b"HTTP/1.1 200") == 2001
