"""Which bodies an engine takes when nothing else is configured."""

from __future__ import annotations

import socket

import orjson
from tests.support.engines import Client, EngineProcess
from tests.unit.refengine.conftest import Start

from pdserve.http1.limits import ClientLimits
from pdserve.refengine.config import MAX_BODY_BYTES
from pdserve.wire import calls

ROOM_FOR_A_LEG = 64 << 10
"""Bytes that a gateway may add to a client's body: names, parameters of KV, where it is."""


def body_of(size: int) -> bytes:
    """A good request of so many bytes."""
    request = orjson.dumps({"model": "reference", "prompt": "Hello", "max_tokens": 1})
    return request + b" " * (size - len(request))


async def test_an_engine_takes_what_a_gateway_takes_from_clients_and_no_byte_more(
    client: Client, start: Start
) -> None:
    engine = await start(EngineProcess("both"))
    most = ClientLimits().body + ROOM_FOR_A_LEG
    assert most == MAX_BODY_BYTES
    taken = await client.call("POST", engine.url + calls.PATH_COMPLETIONS, body_of(most))
    # It is read as a whole: what is wrong with it is its prompt.
    assert (taken.status, taken.body["error"]["code"]) == (400, "context_length_exceeded")
    refused = await client.call("POST", engine.url + calls.PATH_COMPLETIONS, body_of(most + 1))
    assert refused.status == 413
    assert f"limit of {most} bytes" in refused.body["error"]["message"]


async def test_a_body_beyond_the_limit_is_refused_before_it_is_sent(start: Start) -> None:
    engine = await start(EngineProcess("both"))
    head = f"POST {calls.PATH_COMPLETIONS} HTTP/1.1\r\ncontent-length: {MAX_BODY_BYTES + 1}\r\n\r\n"
    with socket.create_connection((engine.host, 8000), timeout=60) as connection:
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")
