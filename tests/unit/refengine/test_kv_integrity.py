"""KV frames: corrupt, foreign and stale ones are refused, and older engines are understood."""

from __future__ import annotations

import asyncio
import os
import random
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.engines import Client
from tests.support.kv_corrupting_link import KINDS, OUTCOMES, requests_over_link
from tests.support.kv_corruptions import CLASSES, Corruptions, accepted, accepts
from tests.unit.refengine.test_device_paths import Ends
from tests.unit.refengine.test_transport import DATA, RECEIVER, Pair, Store, raw_server, read_frame

from pdserve.engines.trust import shared_proof
from pdserve.refengine.kv import protocol
from pdserve.refengine.kv.kv_transport import (
    CorruptKvError,
    PathError,
    TransportError,
    WantedKv,
)
from pdserve.refengine.kv.payload import Payload, frame_sizes
from pdserve.refengine.kv.protocol import FrameKind
from pdserve.refengine.kv.tcp import TcpTransport

SEED = int(os.environ.get("PDSERVE_SEED", random.SystemRandom().randrange(1 << 32)))


def test_kv_that_was_not_damaged_is_accepted() -> None:
    made = Corruptions(SEED)
    assert all(accepts(made.good, made.random) for _ in range(100))


@pytest.mark.parametrize("kind", CLASSES)
def test_no_corruption_is_accepted(kind: str) -> None:
    made = Corruptions(SEED)
    for number in range(500):
        assert not accepts(made.one(kind), made.random), f"seed {SEED}, corruption {number}"


def test_corruptions_of_all_classes_are_counted() -> None:
    assert accepted(SEED, 2 * len(CLASSES)) == dict.fromkeys(CLASSES, 0), f"seed {SEED}"


@pytest.mark.parametrize(("blocks", "each"), [(1, 1), (5, 2), (6, 2), (3, 100)])
def test_frames_carry_every_block_once(blocks: int, each: int) -> None:
    payload = Payload.of(32 * blocks, memoryview(os.urandom(96 * blocks)))
    frames = list(payload.frames(each))
    assert [(first, count) for first, count, _, _ in frames] == frame_sizes(blocks, each)
    assert b"".join(part for _, _, part, _ in frames) == payload.data


@pytest.mark.parametrize("each", [1, 2, 3])
async def test_a_receiver_chooses_the_size_of_frames(each: int) -> None:
    async with Pair(Store()) as pair:
        receiver = TcpTransport(RECEIVER, Store(), 5, each)
        buffer = bytearray(len(DATA))
        await receiver.pull(pair.address, WantedKv("r1", 64), [memoryview(buffer)])
        assert buffer == DATA
        await receiver.stop()


@pytest.mark.parametrize("generation", [0, 7])
async def test_only_the_generation_that_was_asked_for_is_sent(generation: int) -> None:
    store = Store()
    store.payload = replace(store.payload, generation=7)
    async with Pair(store) as pair:
        buffer = [memoryview(bytearray(len(DATA)))]
        await pair.receiver.pull(pair.address, WantedKv("r1", 64, generation), buffer)
        with pytest.raises(TransportError, match="another generation"):
            await pair.receiver.pull(pair.address, WantedKv("r1", 64, 8), buffer)
        await pair.pull()
        assert store.events == ["pulled r1 by d0", "failed r1 by d0"]


async def _hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, nonce: str) -> str:
    """The handshake of a prefill with this nonce; returns the decode's nonce."""
    writer.write(protocol.encode(FrameKind.CHALLENGE, {"id": "p0", "nonce": nonce}))
    _, hello = await read_frame(reader)
    mac = protocol.mac(
        shared_proof("secret"),
        "server",
        server="p0",
        client="d0",
        nonces=(nonce, str(hello["nonce"])),
        model="model-1",
    )
    writer.write(protocol.encode(FrameKind.WELCOME, {"numerics": "bits", "mac": mac}))
    return str(hello["nonce"])


async def test_a_prefill_of_an_older_version_is_pulled_from() -> None:
    asked: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _hello(reader, writer, "0123")
        asked.put_nowait((await read_frame(reader))[1])
        head = {"tokens": 64, "bytes": len(DATA), "crc": zlib.crc32(DATA)}
        writer.write(protocol.encode(FrameKind.KV, head) + DATA)
        asked.put_nowait((await read_frame(reader))[1])
        writer.close()

    transport, buffer = TcpTransport(RECEIVER, Store(), 5), bytearray(len(DATA))
    address = await raw_server(talk)
    await transport.pull(address, WantedKv("r1", 64, 5), [memoryview(buffer)])
    assert buffer == DATA
    assert [await asked.get() for _ in range(2)] == [{"request": "r1"}] * 2  # PULL and DONE
    await transport.stop()


async def test_a_decode_of_an_older_version_pulls() -> None:
    async with Pair(Store()) as pair:
        reader, writer = await asyncio.open_connection(pair.address.host, pair.address.port)
        _, challenge = await read_frame(reader)
        mac = protocol.mac(
            shared_proof("secret"),
            "client",
            server="p0",
            client="d0",
            nonces=(str(challenge["nonce"]), "0123"),
            model="model-1",
        )
        hello = {"id": "d0", "to": "p0", "nonce": "0123", "model": "model-1", "mac": mac}
        writer.write(protocol.encode(FrameKind.HELLO, hello))
        assert (await read_frame(reader))[0] is FrameKind.WELCOME
        writer.write(protocol.encode(FrameKind.PULL, {"request": "r1"}))
        kind, body = await read_frame(reader)
        want = {"tokens": 64, "bytes": len(DATA), "crc": zlib.crc32(DATA)}
        assert (kind, body) == (FrameKind.KV, want)
        assert await reader.readexactly(len(DATA)) == DATA
        writer.close()


async def test_a_changed_nonce_does_not_hide_that_a_peer_checks_frames() -> None:
    """Not a peer of an older version, but no peer: the proofs cover the nonces."""
    async with Pair(Store()) as pair:

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there = await asyncio.open_connection(pair.address.host, pair.address.port)
            _, challenge = await read_frame(there[0])
            nonce = str(challenge["nonce"]).replace("crc32c", "crc32b")
            writer.write(protocol.encode(FrameKind.CHALLENGE, challenge | {"nonce": nonce}))
            there[1].write(await reader.read(65536))
            writer.write(await there[0].read(65536))
            there[1].close()

        transport = TcpTransport(RECEIVER, Store(), 5)
        with pytest.raises(TransportError, match="wrong token"):
            await transport.link(await raw_server(talk))


ANSWERS: dict[str, bytes] = {
    "no frame": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "not json": protocol.HEAD.pack(b"PDKV", protocol.VERSION, FrameKind.KV, 3) + b"{x}",
    "no sizes": protocol.encode(FrameKind.KV, {}),
    "no number": protocol.encode(FrameKind.KV, {"tokens": 64, "bytes": str(len(DATA))}),
    "negative": protocol.encode(
        FrameKind.KV, {"tokens": 64, "bytes": len(DATA), "generation": -1}
    ),
    "huge": protocol.encode(
        FrameKind.KV, {"tokens": 64, "bytes": len(DATA), "generation": 1 << 63}
    ),
    "no head": protocol.encode(
        FrameKind.KV, {"tokens": 64, "bytes": len(DATA), "generation": 5}
    ) + bytes(1 << 20),
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERS)
async def test_any_other_answer_to_a_pull_is_corrupt(case: str) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _hello(reader, writer, protocol.new_nonce())
        await read_frame(reader)
        writer.write(ANSWERS[case])
        await reader.read()

    transport = TcpTransport(RECEIVER, Store(), 5)
    with pytest.raises(CorruptKvError, match="p0"):
        address = await raw_server(talk)
        await transport.pull(address, WantedKv("r1", 64), [memoryview(bytearray(len(DATA)))])


async def test_a_prefill_that_dies_in_the_middle_sent_nothing_corrupt() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _hello(reader, writer, protocol.new_nonce())
        await read_frame(reader)
        writer.write(
            protocol.encode(FrameKind.KV, {"tokens": 64, "bytes": len(DATA), "generation": 5})
        )
        writer.close()

    transport = TcpTransport(RECEIVER, Store(), 5)
    with pytest.raises(PathError) as raised:
        address = await raw_server(talk)
        await transport.pull(address, WantedKv("r1", 64), [memoryview(bytearray(len(DATA)))])
    assert not isinstance(raised.value, CorruptKvError)


@pytest.mark.parametrize(
    ("devices", "corrupt", "counted"),
    [
        ([], 1, {("pod", "no_address"): 1}),
        ([], 2, {}),
        (["127.0.0.1"], 1, {("pod", "unreachable"): 1}),
        (["127.0.0.1"], 2, {}),
    ],
)
async def test_corrupt_kv_is_pulled_once_more(
    devices: list[str], corrupt: int, counted: dict[tuple[str, str], int]
) -> None:
    async with Ends(devices) as ends:
        if devices:
            await ends.pulled("device")
            ends.counted.clear()
        ends.store.corrupt = corrupt
        if counted:
            await ends.pull()
        else:
            with pytest.raises(CorruptKvError, match="p0: KV of 'r1' is corrupt in blocks 0 to 1"):
                await ends.pull()
        assert ends.counted == counted
    assert ends.corrupt == ["p0"] * corrupt


async def test_a_link_that_damages_kv_gives_no_wrong_token(client: Client, tmp_path: Path) -> None:
    log = tmp_path / "engines.log"
    outcomes, damaged = await requests_over_link(client, SEED, 4 * len(KINDS), log)
    assert outcomes["wrong tokens"] == 0, f"seed {SEED}"
    assert set(outcomes) <= set(OUTCOMES)
    assert all(damaged[kind] >= 4 for kind in KINDS), damaged
    # How many are pulled a second time in time depends on the machine.
    assert outcomes["right tokens"] > 0 and outcomes["corrupt"] > 0, outcomes
