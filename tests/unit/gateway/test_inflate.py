"""Compressed request bodies: taken when they are gzip, and bounded by what they inflate to."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import zlib

import pytest
from tests.support.gateway_rig import Answer, Rig, eventually

from pdserve.gateway.inflate import PIECE, plain_body
from pdserve.http1.limits import ClientLimits
from pdserve.wire.calls import PATH_COMPLETIONS

BODY = {"model": "tiny", "prompt": "hello", "max_tokens": 3}


async def post(rig: Rig, body: bytes, encoding: str) -> Answer:
    headers = {"content-encoding": encoding}
    return await rig.request("POST", PATH_COMPLETIONS, body, headers)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", " GZip ", "identity", ""])
async def test_a_body_is_read_as_it_was_encoded(rig: Rig, encoding: str) -> None:
    await rig.one_group()
    plain = json.dumps(BODY).encode()
    body = gzip.compress(plain) if "g" in encoding.lower() else plain
    answer = await post(rig, body, encoding)
    assert (answer.status, answer.text) == (200, "t0 t1 t2 ")
    assert rig.engines["p0"].seen[0]["prompt"] == "hello"


async def test_a_long_body_arrives_whole(rig: Rig) -> None:
    await rig.one_group(limits=ClientLimits())
    text = "".join(random.Random(3).choices("abcdefgh ", k=5 * PIECE + 7))
    answer = await post(rig, gzip.compress(json.dumps({**BODY, "prompt": text}).encode()), "gzip")
    assert answer.status == 200
    assert rig.engines["p0"].seen[0]["prompt"] == text


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip, gzip", "gzip;q=1", "x" * 500])
async def test_other_encodings_are_refused_with_what_would_be_right(
    rig: Rig, encoding: str
) -> None:
    await rig.one_group()
    answer = await post(rig, zlib.compress(json.dumps(BODY).encode()), encoding)
    assert (answer.status, answer.json["error"]["code"]) == (415, "unsupported_encoding")
    assert "send gzip" in answer.json["error"]["message"]
    assert answer.headers["accept-encoding"] == "gzip, identity"
    assert not rig.engines["p0"].seen


def _damaged() -> dict[str, bytes]:
    good = gzip.compress(json.dumps(BODY).encode())
    return {
        "plain": json.dumps(BODY).encode(),
        "empty": b"",
        "head only": good[:10],
        "cut short": good[:-1],
        "without its checksum": good[:-8],
        "wrong checksum": good[:-8] + bytes(8),
        "bytes after it": good + b"x",
        "two of them": good + good,
        "zlib": zlib.compress(json.dumps(BODY).encode()),
    }


@pytest.mark.invariant(10)
@pytest.mark.parametrize("kind", sorted(_damaged()))
async def test_a_body_that_is_no_gzip_is_refused(rig: Rig, kind: str) -> None:
    await rig.one_group()
    answer = await post(rig, _damaged()[kind], "gzip")
    assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_encoding")
    assert not rig.engines["p0"].seen
    assert (await rig.complete()).status == 200


@pytest.mark.invariant(10)
async def test_what_counts_is_the_inflated_size(rig: Rig) -> None:
    limit = 300_000
    await rig.one_group(limits=ClientLimits(body=limit, memory=10 * limit))
    memory = rig.gateway.server.memory
    text = "x" * (limit - 500)
    fits = gzip.compress(json.dumps({**BODY, "prompt": text}).encode())
    assert len(fits) < 2000
    assert (await post(rig, fits, "gzip")).status == 200
    bomb = gzip.compress(bytes(100 * limit))
    answer = await post(rig, bomb, "gzip")
    assert (answer.status, answer.json["error"]["code"]) == (413, "too_large")
    await eventually(lambda: memory.used == 0, "nothing of it is kept")


@pytest.mark.invariant(10)
async def test_inflated_bodies_fill_the_same_memory_as_plain_ones(rig: Rig) -> None:
    await rig.one_group(limits=ClientLimits(memory=400_000))
    memory = rig.gateway.server.memory
    large = gzip.compress(json.dumps({**BODY, "prompt": "x" * 900_000}).encode())
    answer = await post(rig, large, "gzip")
    assert (answer.status, answer.json["error"]["code"]) == (503, "too_much_at_once")
    await eventually(lambda: memory.used == 0, "nothing of it is kept")
    assert (await rig.complete()).status == 200


@pytest.mark.invariant(10)
async def test_other_work_goes_on_though_a_body_inflates_to_nothing() -> None:
    """Empty blocks of 10 bits each, as long as a body may be."""
    empty = int("0000000010" * 4, 2).to_bytes(5, "little")
    body = gzip.compress(b"")[:10] + empty * (4 * PIECE) + b"\x03\x00" + bytes(8)
    turns, ended = 0, False

    async def other() -> None:
        nonlocal turns
        while not ended:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    assert await plain_body(body, b"gzip", 1, lambda size: True) == b""
    ended = True
    await task
    assert turns >= len(body) // PIECE
