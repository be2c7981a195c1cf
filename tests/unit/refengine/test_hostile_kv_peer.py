"""What a KV peer that proved its key may still not do: say what was not asked, or ask too much."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from tests.support.gateway_rig import eventually
from tests.unit.refengine.test_transport import DATA, RECEIVER, Pair, Store, raw_server, read_frame

from pdserve.engines.trust import shared_proof
from pdserve.refengine.kv import protocol
from pdserve.refengine.kv.integrity import KvIdentity
from pdserve.refengine.kv.kv_transport import TransportError, WantedKv
from pdserve.refengine.kv.payload import Payload
from pdserve.refengine.kv.protocol import FrameKind
from pdserve.refengine.kv.tcp import TcpTransport

PULL = {"request": "r1", "tokens": 64, "generation": 0, "each": 2}


def _mac(side: str, nonces: tuple[str, str]) -> str:
    proof = shared_proof("secret")
    return protocol.mac(proof, side, server="p0", client="d0", nonces=nonces, model="model-1")


def _kv(data: bytes = DATA) -> bytes:
    """A right answer to a pull of `data`."""
    payload = Payload.of(64, memoryview(data))
    identity = KvIdentity("r1", payload.generation, "model-1", 64, payload.block_bytes)
    head = {"tokens": 64, "bytes": len(data), "generation": payload.generation}
    frames = b"".join(identity.head(crc, a, n) + part for a, n, part, crc in payload.frames(2))
    return protocol.encode(FrameKind.KV, head) + frames


async def _rest(reader: asyncio.StreamReader) -> int:
    """Bytes until the other end hangs up, in whatever way."""
    size = 0
    with contextlib.suppress(ConnectionResetError):
        while piece := await reader.read(1 << 16):
            size += len(piece)
    return size


@dataclass
class Prefill:
    """It answers the first pull with `answer`, says more when told to, and notes the end."""

    answer: Callable[[bytes], bytes]
    """Given the WELCOME of the handshake."""
    more: bytes = b""
    go: asyncio.Event = field(default_factory=asyncio.Event)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonce = protocol.new_nonce()
        writer.write(protocol.encode(FrameKind.CHALLENGE, {"id": "p0", "nonce": nonce}))
        _, hello = await read_frame(reader)
        said = {"numerics": "bits", "mac": _mac("server", (nonce, str(hello["nonce"])))}
        welcome = protocol.encode(FrameKind.WELCOME, said)
        writer.write(welcome)
        await read_frame(reader)
        writer.write(self.answer(welcome))
        await self.go.wait()
        writer.write(self.more)
        await _rest(reader)
        self.hung_up.set()
        writer.close()


@pytest.mark.parametrize("kind", [kind.name for kind in FrameKind if kind.name != "KV"])
async def test_nothing_but_kv_ends_a_pull_well(kind: str) -> None:
    frame = protocol.encode(FrameKind[kind], {"id": "p0", "nonce": "n"})
    prefill = Prefill(lambda welcome: welcome if kind == "WELCOME" else frame)
    prefill.go.set()
    transport, buffer = TcpTransport(RECEIVER, Store(), 600, 2), bytearray(len(DATA))
    address = await raw_server(prefill.talk)
    async with asyncio.timeout(60):
        with pytest.raises(TransportError):
            await transport.pull(address, WantedKv("r1", 64), [memoryview(buffer)])
        await prefill.hung_up.wait()
    await transport.stop()


@pytest.mark.parametrize("early", [0, 2000])
@pytest.mark.parametrize("size", [8192, len(DATA)])
async def test_nothing_is_written_into_the_memory_of_a_pull_that_is_over(
    size: int, early: int
) -> None:
    """`early`: so much of another KV comes together with the end of the one that was asked for."""
    right, other = DATA[:size], _kv(bytes(size))
    prefill = Prefill(lambda welcome: _kv(right) + other[:early], other[early:])
    transport, buffer = TcpTransport(RECEIVER, Store(), 60, 2), bytearray(size)
    address = await raw_server(prefill.talk)
    async with asyncio.timeout(60):
        await transport.pull(address, WantedKv("r1", 64), [memoryview(buffer)])
        prefill.go.set()
        await prefill.hung_up.wait()
    assert buffer == right
    await transport.stop()


async def _linked(pair: Pair) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A decode of the test's own, after the handshake."""
    reader, writer = await asyncio.open_connection(pair.address.host, pair.address.port)
    _, challenge = await read_frame(reader)
    nonce = protocol.new_nonce()
    mac = _mac("client", (str(challenge["nonce"]), nonce))
    hello = {"id": "d0", "to": "p0", "nonce": nonce, "model": "model-1", "mac": mac}
    writer.write(protocol.encode(FrameKind.HELLO, {**hello, "numerics": "bits"}))
    assert (await read_frame(reader))[0] is FrameKind.WELCOME
    return reader, writer


async def test_a_second_pull_is_not_sent_before_the_first_is_confirmed() -> None:
    async with Pair(Store()) as pair, asyncio.timeout(60):
        reader, writer = await _linked(pair)
        writer.write(protocol.encode(FrameKind.PULL, PULL) * 50)
        assert await _rest(reader) < 2 * len(DATA)
        assert pair.store.events == ["failed r1 by d0"]
        writer.close()


@pytest.mark.parametrize("taken", [0, 1000, len(DATA)])
async def test_a_peer_that_does_not_confirm_what_it_pulled_is_cut(taken: int) -> None:
    """A decode that was stopped: the KV must not stay in memory for it."""
    async with Pair(Store(), timeout=0.1) as pair, asyncio.timeout(60):
        reader, writer = await _linked(pair)
        writer.write(protocol.encode(FrameKind.PULL, PULL))
        if taken:
            await reader.readexactly(taken)
        await eventually(lambda: bool(pair.store.events), "the pull is given up")
        assert pair.store.events == ["failed r1 by d0"]
        await _rest(reader)
        writer.close()


async def test_a_connection_that_sends_nothing_stays() -> None:
    async with Pair(Store(), timeout=0.05) as pair, asyncio.timeout(60):
        assert await pair.pull() == DATA
        reader, writer = await _linked(pair)
        await asyncio.sleep(0.3)
        writer.write(protocol.encode(FrameKind.PING))
        assert (await read_frame(reader))[0] is FrameKind.PONG
        writer.close()


@pytest.mark.parametrize("done", ["r1", "r2"])
async def test_only_what_was_sent_can_be_confirmed(done: str) -> None:
    async with Pair(Store()) as pair, asyncio.timeout(60):
        reader, writer = await _linked(pair)
        if done == "r2":
            writer.write(protocol.encode(FrameKind.PULL, PULL))
        writer.write(protocol.encode(FrameKind.DONE, {"request": done}))
        await _rest(reader)
        assert f"pulled {done} by d0" not in pair.store.events
        writer.close()
