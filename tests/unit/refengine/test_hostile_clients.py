"""What a client does to its connection or its request costs that request alone.

Real processes. Leases are made longer than any wait here, so that no test passes because the end
of a lease cleaned up.
"""

from __future__ import annotations

import asyncio
import random
import socket
from typing import Any

import orjson
import pytest
from tests.support.engine_requests import BODY, PATH, is_idle
from tests.support.engines import Client, EngineProcess, Group, until

from pdserve.wire import calls

LONG_LEASE = ("--lease-seconds", "3600")
HAND_OVER = {calls.PARAM_KV: {"do_remote_decode": True, "do_remote_prefill": False}}


def raw_request(body: dict[str, Any], name: str = "", path: str = PATH) -> bytes:
    data = orjson.dumps(body)
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer test-token\r\n"
    head += f"{calls.HEADER_REQUEST_ID}: {name}\r\n" if name else ""
    return f"{head}content-length: {len(data)}\r\n\r\n".encode() + data


# --- aborts -----------------------------------------------------------------------------------


async def test_aborts_at_random_times_leave_nothing(client: Client, start_group: Any) -> None:
    """Architecture invariant 12: by a closed connection, by a release, early and late."""
    group: Group = await start_group(("--slots", "8", *LONG_LEASE))
    prefill, dice = group.prefills[0], random.Random(9)
    release = prefill.url + calls.PATH_RELEASE

    async def abort(number: int) -> None:
        name, way = f"abort-{number}", dice.choice(("close", "reset", "release", "early"))
        # Text of 3 to 30 KB is tokenised beside the loop; ids are admitted at once.
        text = "word " * dice.randrange(600, 1800)
        prompt: Any = dice.choice((text, [5 + i % 2000 for i in range(dice.randrange(1, 600))]))
        body = BODY | HAND_OVER | {"prompt": prompt, "max_tokens": 1}
        if way == "early":
            assert (await client.call("POST", release, {"request_id": name})).status == 204
        reader, writer = await asyncio.open_connection(prefill.host, 8000)
        if way in ("close", "reset"):
            # A reply that was read is a reply that is used: this client reads nothing.
            writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(raw_request(body, name))
        await asyncio.sleep(dice.random() * dice.choice((0.001, 0.01, 0.1)))
        if way == "release":
            assert (await client.call("POST", release, {"request_id": name})).status == 204
            assert (await client.call("POST", release, {"request_id": name})).status == 204
            await reader.readline()  # the request is over, whatever the answer is
        elif way == "early":
            assert (await reader.readline()).split()[1] in (b"409", b"503", b"400")
        elif way == "reset":
            writer.transport.abort()
        writer.close()

    for first in range(0, 1000, 20):
        await asyncio.gather(*(abort(first + n) for n in range(20)))
    await until(lambda: is_idle(client, prefill), "nothing is held", 60)
    report = (await client.call("POST", prefill.url + calls.PATH_DRAIN)).body
    assert report == {"executing": 0, "holding": 0, "streams": 0}


async def test_a_release_that_overtakes_its_request(client: Client, start_group: Any) -> None:
    group: Group = await start_group(("--slots", "1", *LONG_LEASE))
    url = group.prefills[0].url + calls.PATH_RELEASE
    for _ in range(2):
        assert (await client.call("POST", url, {"request_id": "late"})).status == 204
    late = await group.prefill(PATH, BODY, **{calls.HEADER_REQUEST_ID: "late"})
    assert (late.status, late.body["error"]["code"]) == (409, "released")
    other = await group.prefill(PATH, BODY, **{calls.HEADER_REQUEST_ID: "other"})
    assert other.status == 200


async def test_a_release_ends_what_computes(client: Client, start_group: Any) -> None:
    paced = ("--paced", "demo-small", "--pace-factor", "1000")
    group: Group = await start_group((*paced, "--slots", "1", *LONG_LEASE))
    prefill = group.prefills[0]
    leg = asyncio.create_task(group.prefill(PATH, BODY, **{calls.HEADER_REQUEST_ID: "x"}))

    async def executing() -> bool:
        return bool(await client.metric(prefill, 'pdserve_engine_slots{state="executing"}'))

    await until(executing, "it computes")
    release = prefill.url + calls.PATH_RELEASE
    assert (await client.call("POST", release, {"request_id": "x"})).status == 204
    reply = await leg
    assert (reply.status, reply.body["error"]["code"]) == (499, "released")
    # Its paced step would last two minutes more; its KV does not wait for that.
    await until(lambda: is_idle(client, prefill), "slot and KV are free", 60)


# --- prompts that cannot fit --------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["text", "escapes", "messages", "ids", "deep", "nan", "charset"])
async def test_a_body_of_4_mib_is_refused_and_costs_nothing(
    shape: str, client: Client, start: Any
) -> None:
    engine = await start(EngineProcess("both", ("--slots", "2")))
    size = (4 << 20) - 1
    wrap = {
        "text": (b'{"model":"reference","prompt":"', b"a ", b'"}'),
        "escapes": (b'{"model":"reference","prompt":"', b"\\u0041", b'"}'),
        "messages": (b'{"model":"reference","messages":[{}', b",{}", b"]}"),
        "ids": (b'{"model":"reference","prompt":[5', b",5", b"]}"),
        "deep": (b"[", b"[", b"["),
        "nan": (b'{"model":"reference","prompt":[NaN', b",NaN", b"]}"),
        "charset": (b'{"model":"reference","prompt":"', b"\xff", b'"}'),
    }
    before, middle, after = wrap[shape]
    room = size - len(before) - len(after)
    body = before + middle * (room // len(middle)) + b" " * (room % len(middle)) + after
    path = calls.PATH_CHAT if shape == "messages" else PATH
    await client.call("POST", engine.url + PATH, BODY)
    base, seen = engine.rss, []
    for _ in range(5):
        reply = await client.call("POST", engine.url + path, body)
        assert (reply.status, reply.body["error"]["code"]) == (400, "context_length_exceeded")
        seen.append(engine.rss)
    assert max(seen) - base <= 50 << 20
    assert (await client.call("POST", engine.url + PATH, BODY)).status == 200


async def test_the_bound_is_the_context_times_the_longest_token(
    client: Client, start: Any, model: Any
) -> None:
    engine = await start(EngineProcess("both", ("--slots", "2")))
    info = (await client.call("GET", engine.url + calls.PATH_INFO)).body
    links = (await client.call("GET", engine.url + calls.PATH_LINKS)).body
    bound = model.config.context * model.tokenizer.longest_token + 4096
    assert info["maxPromptBytes"] == links["maxPromptBytes"] == bound
    for text, message in (("é" * (bound // 2 + 1), "bytes"), ("a" * bound, "tokens")):
        reply = await client.call("POST", engine.url + PATH, BODY | {"prompt": text})
        assert (reply.status, reply.body["error"]["param"]) == (400, "prompt")
        assert f" {message}; " in reply.body["error"]["message"]
    long = [{"role": "user", "content": "a" * bound}, {"role": "user", "content": "b"}]
    body = {"model": "reference", "messages": long}
    reply = await client.call("POST", engine.url + calls.PATH_CHAT, body)
    assert (reply.status, reply.body["error"]["code"]) == (400, "context_length_exceeded")


# --- HTTP ---------------------------------------------------------------------------------------


@pytest.fixture
async def quick(start: Any) -> EngineProcess:
    """An engine that waits 1 s for a request that began."""
    engine: EngineProcess = await start(
        EngineProcess("both", ("--slots", "2", "--arrival-seconds", "1"))
    )
    return engine


def exchange(engine: EngineProcess, sent: bytes) -> bytes:
    """Everything an engine says to these bytes until it closes the connection."""
    with socket.create_connection((engine.host, 8000), timeout=60) as connection:
        connection.sendall(sent)
        data = b""
        while piece := connection.recv(65536):
            data += piece
        return data


HALF = {
    "head": b"GET /health HTTP/1.1\r\nhost: ",
    "body": b"POST /v1/completions HTTP/1.1\r\ncontent-length: 100\r\n\r\n{",
    "chunk": b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
}


async def test_half_a_request_times_out(quick: EngineProcess) -> None:
    said = await asyncio.gather(*(asyncio.to_thread(exchange, quick, h) for h in HALF.values()))
    for data in said:
        assert data.startswith(b"HTTP/1.1 408")


async def test_a_refusal_arrives_although_more_was_sent(quick: EngineProcess) -> None:
    """Closed with unread bytes, the connection would be reset and the reply lost."""
    for sent in (
        b"GET /" + b"a" * (6 << 20),
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: 99999999\r\n\r\n" + b"x" * (6 << 20),
        b"\0" * (6 << 20),
    ):
        data = await asyncio.to_thread(exchange, quick, sent)
        assert data.startswith(b"HTTP/1.1 4"), data[:99]
        assert data.endswith(b"}")


async def test_a_reply_to_head_has_no_body(quick: EngineProcess) -> None:
    for path in (b"/health", b"/v1/models", b"/nothing", b"/v1/completions"):
        sent = (
            b"HEAD " + path + b" HTTP/1.1\r\n\r\nGET /health HTTP/1.1\r\nconnection: close\r\n\r\n"
        )
        head, _, rest = (await asyncio.to_thread(exchange, quick, sent)).partition(b"\r\n\r\n")
        assert b"content-length: " in head
        assert rest.startswith(b"HTTP/1.1 200"), (path, rest)


async def test_pipelined_requests_are_bounded(quick: EngineProcess) -> None:
    long = raw_request(BODY | {"max_tokens": 200})
    data = await asyncio.to_thread(exchange, quick, long + b"GET /health HTTP/1.1\r\n\r\n" * 5000)
    assert data.count(b"HTTP/1.1 200") == 1 + 65
    assert data.count(b"HTTP/1.1 400") == 1 and b"too_many_pipelined" in data


async def test_a_client_that_reads_nothing_is_dropped(quick: EngineProcess) -> None:
    def stall() -> None:
        with socket.create_connection((quick.host, 8000), timeout=60) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with pytest.raises(ConnectionError):
                while True:
                    connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n" * 50)

    await asyncio.to_thread(stall)


# --- early head ---------------------------------------------------------------------------------


async def test_102_when_the_kv_was_pulled(client: Client, start_group: Any) -> None:
    # Steps of seconds: what comes before the second token is there long before the reply.
    paced = ("--paced", "demo-small", "--pace-factor", "20")
    group: Group = await start_group(("--slots", "2", *LONG_LEASE), paced)
    params = [(await group.prefill(PATH, BODY)).body[calls.PARAM_KV] for _ in range(2)]
    decode = group.decodes[0]
    for header, first in ((f"{calls.HEADER_EARLY_HEAD}: 1\r\n", b"102"), ("", b"200")):
        reader, writer = await asyncio.open_connection(decode.host, 8000)
        request = raw_request(BODY | {calls.PARAM_KV: params.pop()})
        writer.write(request.replace(b"host: a\r\n", b"host: a\r\n" + header.encode(), 1))
        assert (await reader.readline()).split()[1] == first
        if first == b"102":
            assert await reader.readline() == b"\r\n"
            assert await client.metric(decode, 'vllm:num_requests_running{model_name="reference"}')
            assert (await reader.readline()).split()[1] == b"200"
        writer.close()
