"""An engine that breaks, or answers nonsense: a clear error each time, no place lost, no crash."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.support.gateway_rig import eventually
from tests.support.proxy_rig import ProxyRig, kv, rig

from pdserve.engineproxy import engine_access
from pdserve.http1.listener import UpstreamError


@pytest_asyncio.fixture
async def group() -> AsyncIterator[ProxyRig]:
    async with rig() as made:
        yield made


def whole(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status.encode(), len(body), body)


def chunked(*events: bytes) -> bytes:
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(e), e) for e in events)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
    return head + b"\r\n" + pieces + b"0\r\n\r\n"


NONSENSE = {
    "nothing": b"",
    "no HTTP": b"\x00\x01\x02 hello\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\ncontent-le",
    "huge head": b"HTTP/1.1 200 OK\r\nx: " + b"a" * 200_000,
    "half a body": b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{",
    "odd length": b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n{}",
    "upgrade": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
}
BODIES = {
    "no JSON": b"<html>", "a list": b"[]", "null": b"null", "a number": b"7", "empty": b"",
    "no UTF-8": b'{"a":"\xff"}', "deep": b"[" * 5000 + b"]" * 5000,
    "params are a list": b'{"choices":[],"kv_transfer_params":[1]}',
    "params are text": b'{"choices":[],"kv_transfer_params":"x"}',
}  # fmt: skip


@pytest.mark.parametrize("raw", [*NONSENSE.values(), *map(whole, BODIES.values())],
                         ids=[*NONSENSE, *BODIES])  # fmt: skip
async def test_a_prefills_engine_talks_nonsense(group: ProxyRig, raw: bytes) -> None:
    p = group.instances["p0"]
    p.stub.raw = raw
    answer = await p.generate("a")
    assert answer.status == 502, answer.body
    assert answer.json["error"]["type"] == "server_error"
    assert "x-pdserve-reject" not in answer.headers
    assert answer.headers["x-pdserve-slots"] == "2/2"
    assert (p.executing, p.held) == (0, 0)
    p.stub.raw = None
    await eventually(lambda: p.context.ready, "it goes on")
    assert (await p.generate("b")).status == 200


STREAMS = {
    "no event": chunked(b""),
    "an error at once": chunked(b'data: {"error":{"message":"m"}}\n\n', b"data: [DONE]\n\n"),
    "an odd error": chunked(b'data: {"error":7}\n\n'),
    "a comment, an error": chunked(b": ping\n\n", b'data: {"error":{"message":"m"}}\n\n'),
}


@pytest.mark.parametrize(
    ("raw", "streamed", "reject"),
    [
        *((raw, False, "") for raw in NONSENSE.values()),
        *((raw, True, "") for raw in NONSENSE.values()),
        (whole(b"<html>"), False, "kv_failed"),
        (whole(b'{"error":{"message":"KV load failure"}}', "500 X"), False, "kv_failed"),
        (whole(b"<html>", "500 X"), True, "kv_failed"),
        (whole(b"{}", "503 X"), True, "kv_failed"),
        (whole(b"{}", "429 X"), False, "kv_failed"),
        *((raw, True, "kv_failed") for raw in STREAMS.values()),
    ],
)
async def test_a_decodes_engine_fails_before_its_first_token(
    group: ProxyRig, raw: bytes, streamed: bool, reject: str
) -> None:
    """Nothing has reached the client: another decode, or another prefill, can serve it."""
    p, d = group.instances["p0"], group.instances["d0"]
    params = kv(await p.generate("a"))
    d.stub.raw = raw
    answer = await d.generate(kv_transfer_params=params, stream=streamed)
    assert answer.status == 502, answer.body
    assert answer.headers.get("x-pdserve-reject", "") == reject
    assert d.executing == 0
    assert p.held == 1, "the KV may still be there"


async def test_a_reply_is_a_stream_where_the_engine_says_so(group: ProxyRig) -> None:
    """Whatever the request seems to ask for: engines read `"no"` as false."""
    p, d = group.instances["p0"], group.instances["d0"]
    params = kv(await p.generate("a"))
    d.stub.raw = whole(b'{"choices":[{"text":"t"}]}')
    answer = await d.generate(kv_transfer_params=params, stream="no")
    assert (answer.status, answer.text) == (200, "t")


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("body", [b'{"error":{"message":"too long"}}', b"<html>", b""])
async def test_a_clients_mistake_is_answered_in_the_engines_words(
    group: ProxyRig, status: int, body: bytes
) -> None:
    p = group.instances["p0"]
    p.stub.raw = whole(body, f"{status} X")
    answer = await p.generate("a")
    assert answer.status == status
    message = answer.json["error"]["message"]
    assert message == ("too long" if b"too long" in body else f"engine answered {status}")


async def test_an_engine_that_refuses_a_prefill_is_full(group: ProxyRig) -> None:
    p = group.instances["p0"]
    p.stub.max_queued = 0
    answer = await p.generate("a")
    assert (answer.status, answer.headers["x-pdserve-reject"]) == (503, "full")
    assert (p.executing, p.held) == (0, 0)


async def test_an_engine_that_refuses_a_decode_has_freed_the_kv(group: ProxyRig) -> None:
    """So no other decode is asked for it."""
    p, d = group.instances["p0"], group.instances["d0"]
    params = kv(await p.generate("a"))
    d.stub.max_queued = 0
    answer = await d.generate(kv_transfer_params=params)
    assert (answer.status, answer.headers["x-pdserve-reject"]) == (502, "kv_failed")
    assert not p.stub.held


@pytest.mark.parametrize("stream", [False, True])
async def test_kv_that_cannot_be_loaded_is_no_answer(group: ProxyRig, stream: bool) -> None:
    """The engine has sent 200 by then, where it streams."""
    p, d = group.instances["p0"], group.instances["d0"]
    params = kv(await p.generate("a"))
    d.stub.breaks_pulls = True
    answer = await d.generate(kv_transfer_params=params, stream=stream)
    assert (answer.status, answer.headers["x-pdserve-reject"]) == (502, "kv_failed")
    assert "KV load failure" in answer.json["error"]["message"]


async def test_a_decode_killed_in_mid_stream_ends_the_stream_with_an_error(
    group: ProxyRig,
) -> None:
    p, d = group.instances["p0"], group.instances["d0"]
    params = kv(await p.generate("a"))
    d.stub.cut_after = 2
    answer = await d.generate(kv_transfer_params=params, stream=True)
    assert answer.status == 200
    *_, before, last = answer.events
    assert before["choices"][0]["text"] == "t1 "
    assert last["error"]["code"] == "engine_lost"
    assert d.executing == 0


async def test_an_engine_that_dies_takes_its_kv_and_its_readiness_along(group: ProxyRig) -> None:
    p = group.instances["p0"]
    await p.generate("a")
    p.stub.token_gate = asyncio.Event()
    running = asyncio.create_task(p.generate("b"))
    await eventually(lambda: p.executing == 1, "it runs")
    await p.stub.kill()
    assert (await running).json["error"]["code"] == "engine_lost"
    await eventually(lambda: not p.context.ready and not p.held, "the proxy has seen it")
    assert (await p.ask("GET", "/health")).status == 503
    assert (await p.ask("GET", "/livez")).status == 200
    refused = await p.generate("c")
    assert (refused.status, refused.headers["x-pdserve-reject"]) == (503, "not_ready")
    p.stub.token_gate = None
    await p.stub.start()
    await eventually(lambda: p.context.ready, "it is back")
    assert (await p.generate("d")).status == 200


async def test_an_engine_that_answers_late_is_down_only_after_some_silence(
    group: ProxyRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy engine answers late."""
    p = group.instances["p0"]
    asked = 0

    async def silent(*_: object) -> tuple[int, bytes]:
        nonlocal asked
        asked += 1
        raise UpstreamError("timeout", "no answer")

    monkeypatch.setattr(engine_access, "get", silent)
    p.context.engine.suspect()
    while p.context.ready:
        p.context.engine.suspect()
        await asyncio.sleep(0)
    assert asked == engine_access.SILENCES
    monkeypatch.undo()
    await eventually(lambda: p.context.ready, "it is back")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff", b'{"kv_transfer_params":' + b"[" * 500]
)
@pytest.mark.parametrize("name", ["p0", "d0"])
async def test_bodies_of_no_leg(group: ProxyRig, name: str, body: bytes) -> None:
    instance = group.instances[name]
    answer = await instance.ask("POST", "/v1/completions", body)
    assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_json")
    assert instance.executing == 0


async def test_a_body_above_the_limit_is_refused(group: ProxyRig) -> None:
    p = group.instances["p0"]
    answer = await p.generate("a", prompt="x" * (5 << 20))
    assert answer.status == 413
    assert p.executing == 0
