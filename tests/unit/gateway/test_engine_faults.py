"""Odd answers of engines: the service's fault, with the right code and outcome."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from tests.support.gateway_rig import PATIENCE, Rig, eventually, parse_answer

from pdserve.forwarding.request.effects import Settings
from pdserve.gateway import release
from pdserve.http1.connection import ClientConnection
from pdserve.wire import metrics as names

CHOICE = {"index": 0, "text": "x", "finish_reason": "stop"}
DONE = b"data: [DONE]\n\n"


def event(**value: Any) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("status", ["301", "307", "401", "403", "404", "408", "409", "500"])
async def test_what_is_not_the_client_s_fault_is_502(rig: Rig, role: str, status: str) -> None:
    await rig.one_group(prefills=2, decodes=2)
    for engine in rig.engines.values():
        engine.script = [status] * 9 if engine.role == role else []
    answer = await rig.complete()
    assert (answer.status, answer.json["error"]["code"]) == (502, "upstream_error")
    assert await rig.metric(names.GATEWAY_OUTCOME, outcome="failed") == 1
    assert sum(e.events["attempts"] for e in rig.engines.values() if e.role == role) == 2


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{}", b'"x"', b"\xff", b"[" * 3000,
        orjson.dumps({"choices": []}), orjson.dumps({"choices": 5}),
        orjson.dumps({"choices": {"0": CHOICE}}), orjson.dumps({"choices": ["x"]}),
        orjson.dumps({"choices": [CHOICE], "usage": 5}),
        orjson.dumps({"choices": [CHOICE], "usage": {"completion_tokens": "abc"}}),
        orjson.dumps({"choices": [CHOICE], "usage": {"completion_tokens": -1}}),
        orjson.dumps({"choices": [CHOICE], "usage": {"completion_tokens": 1e300}}),
    ],
)  # fmt: skip
async def test_a_whole_reply_that_is_no_completion_is_502(rig: Rig, body: bytes) -> None:
    await rig.one_group()
    rig.engines["d0"].whole = body
    answer = await rig.complete()
    assert (answer.status, answer.json["error"]["code"]) == (502, "upstream_error")
    assert await rig.metric(names.GATEWAY_OUTCOME, outcome="failed") == 1


FIRST = event(choices=[CHOICE])


@pytest.mark.parametrize(
    ("events", "begun"),
    [
        ([b"data: {nope}\n\n", DONE], False),
        ([event(choices=5), DONE], False),
        ([event(choices=["x"]), DONE], False),
        ([event(choices=[{"index": 0, "delta": 5}]), DONE], False),
        ([FIRST], True),
        ([FIRST, b"data: {"], True),
        ([FIRST, event(choices=[], usage={"completion_tokens": "abc"}), DONE], False),
        ([DONE[:8]], False),
    ],
)
async def test_a_stream_that_is_odd_or_cut_short_is_failed(
    rig: Rig, events: list[bytes], begun: bool
) -> None:
    await rig.one_group()
    rig.engines["d0"].events_instead = events
    answer = await rig.complete(stream=True)
    if begun:
        assert answer.status == 200
        assert "cut short" in answer.events[-1]["error"]["message"]
    else:
        assert answer.status == 502
    assert await rig.metric(names.GATEWAY_OUTCOME, outcome="failed") == 1
    assert await rig.metric(names.GATEWAY_OUTCOME, outcome="completed") == 0


async def test_an_unending_head_is_refused(rig: Rig) -> None:
    """Nothing of an engine is kept without a bound: its head neither."""

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 200 OK\r\n")
        try:
            while True:
                writer.write(b"x-%d: " % id(writer) + b"y" * 8000 + b"\r\n")
                await writer.drain()
        except ConnectionError:
            cut.set()
        finally:
            writer.close()

    cut = asyncio.Event()
    await rig.one_group()
    server = await asyncio.start_server(endless, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    rig.engines["p0"].port, real = port, rig.engines["p0"].port
    await rig.routes([rig.engines["p0"], rig.engines["d0"]])
    rig.engines["p0"].port = real
    answer = await rig.complete()
    assert answer.status == 502
    assert "head is larger" in answer.json["error"]["message"]
    await asyncio.wait_for(cut.wait(), 60)
    server.close()


async def test_a_stalled_reader_is_the_client_s_fault(rig: Rig) -> None:
    """The instance it stalls is neither silent nor ejected, and the stream goes on."""
    silence = 3.0
    await rig.one_group(settings=Settings(stream_silence=silence))
    body = b'{"model":"tiny","prompt":"x","stream":true,"max_tokens":150000}'
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port, limit=1024)
    writer.write(b"POST /v1/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    raw = bytearray(await reader.read(512))
    await eventually(lambda: rig.engines["d0"].held_up == 1, "the instance is stalled")
    await asyncio.sleep(1.5 * silence)  # longer than an instance may be silent
    assert rig.engines["d0"].held_up == 1
    while piece := await reader.read(65536):
        raw += piece
    writer.close()
    assert raw.endswith(DONE)
    assert b'"error"' not in raw
    assert await rig.metric(names.GATEWAY_EJECTED) == 0
    assert await rig.metric(names.GATEWAY_OUTCOME, outcome="completed") == 1


@pytest.mark.parametrize("path", ["/healthz", "/v1/models", "/nowhere", "/v1/completions"])
async def test_a_reply_to_head_has_no_body(rig: Rig, path: str) -> None:
    await rig.one_group()
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    head = f"HEAD {path} HTTP/1.1\r\nhost: x\r\n\r\n"
    writer.write(head.encode() + b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    raw = await reader.read()
    writer.close()
    first, _, second = raw.partition(b"\r\n\r\n")
    assert int(first.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]) > 0
    assert parse_answer(second).status == 200
    assert parse_answer(second).body == b"ok\n"


async def test_streams_tell_proxies_not_to_buffer(rig: Rig) -> None:
    """K7.3."""
    await rig.one_group()
    assert (await rig.complete(stream=True)).headers["x-accel-buffering"] == "no"
    assert "x-accel-buffering" not in (await rig.complete()).headers
    await eventually(lambda: rig.engines["d0"].running == 0, "idle")


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def standing_in(rig: Rig, name: str, answer: Answer) -> AsyncIterator[None]:
    """Another server answers in place of a stub, to whatever it is sent."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    stub = rig.engines[name]
    stub.port, real = server.sockets[0].getsockname()[1], stub.port
    try:
        await rig.routes(list(rig.engines.values()))
        yield
    finally:
        stub.port = real
        server.close()


@pytest.mark.parametrize("head", [b"200 OK", b"400 Bad Request", b"500 Oops"])
@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_reply_that_stops_within_its_body_holds_no_request(
    rig: Rig, role: str, head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An instance that froze there keeps neither its request nor the gateway's end."""

    async def stops(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(1 << 16))
        writer.write(b"HTTP/1.1 " + head + b"\r\ncontent-length: 99\r\n\r\n{")
        await reader.read()
        writer.close()

    seen: list[bytes] = []
    monkeypatch.setattr(release, "PATIENCE", 0.2)
    await rig.one_group(settings=Settings(stream_silence=2.0))
    async with standing_in(rig, "p0" if role == "prefill" else "d0", stops):
        answer = await asyncio.wait_for(rig.complete(), PATIENCE)
    assert seen
    assert (answer.status, answer.json["error"]["code"]) == (502, "upstream_error")
    assert await rig.metric(names.GATEWAY_INFLIGHT) == 0


@pytest.mark.parametrize("status", [b"101 Switching Protocols", b"200 OK"])
async def test_an_upgrade_that_was_not_asked_for_is_a_fault_of_its_instance(
    rig: Rig, status: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def upgrades(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 16)
        writer.write(b"HTTP/1.1 " + status + b"\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n\x81")
        writer.close()

    await rig.one_group()
    async with standing_in(rig, "p0", upgrades):
        answer = await rig.complete()
    assert answer.status == 502
    assert not [r for r in caplog.records if r.exc_info], "an error of the client's own"


@pytest.mark.parametrize("said", [b"102 Processing", b"200 OK\r\ncontent-length: 9"])
async def test_kv_is_free_although_a_broken_decode_said_that_it_had_pulled_it(
    rig: Rig, said: bytes
) -> None:
    async def breaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 16)
        writer.write(b"HTTP/1.1 " + said + b"\r\n\r\n")
        await writer.drain()
        writer.close()

    await rig.one_group()
    async with standing_in(rig, "d0", breaks):
        answer = await asyncio.wait_for(rig.complete(), PATIENCE)
    assert answer.status == 502
    await eventually(lambda: not rig.engines["p0"].held, "the prefill holds nothing")


@pytest.mark.interpreted
@pytest.mark.parametrize("n", [1, 2])
async def test_a_client_slow_with_its_last_bytes_holds_no_connection_of_others(
    rig: Rig, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An instance's connection may serve another request by then."""
    await rig.one_group(prefills=2, decodes=1)
    send = ClientConnection.send

    def slow(self: ClientConnection, data: bytes) -> None:
        self.pause_writing()
        send(self, data)
        asyncio.get_running_loop().call_later(0.001, self.resume_writing)

    monkeypatch.setattr(ClientConnection, "send", slow)
    async with asyncio.timeout(PATIENCE / 4):
        for _ in range(4):
            assert (await rig.complete(stream=True, n=n)).status == 200
