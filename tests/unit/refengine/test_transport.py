"""The tcp transport between real sockets: what arrives is checked, and who may ask is checked."""

from __future__ import annotations

import asyncio
import dataclasses
import zlib
from collections.abc import Callable

import pytest
from tests.support.engines import fresh_host

from pdserve.engines.trust import Trust, shared_proof
from pdserve.refengine.kv import protocol
from pdserve.refengine.kv.kv_transport import Identity, PeerAddress, TransportError, WantedKv
from pdserve.refengine.kv.payload import Payload
from pdserve.refengine.kv.protocol import FrameKind
from pdserve.refengine.kv.tcp import TcpTransport

SENDER = Identity("p0", Trust("secret"), "model-1", "bits")
RECEIVER = Identity("d0", Trust("secret"), "model-1", "bits")
DATA = bytes(range(256)) * 1024


class Store:
    """An exporter with one request."""

    def __init__(self, checksum: int | None = None) -> None:
        self.payload = Payload.of(64, memoryview(DATA))
        if checksum is not None:
            self.payload = dataclasses.replace(self.payload, checksums=(checksum,))
        self.events: list[str] = []

    def admits(self, peer: str) -> str | None:
        return None if peer == "d0" else f"{peer} is no peer"

    def export(self, request_id: str, peer: str) -> Payload | None:
        return self.payload if request_id == "r1" else None

    def pulled(self, request_id: str, peer: str) -> None:
        self.events.append(f"pulled {request_id} by {peer}")

    def pull_failed(self, request_id: str, peer: str) -> None:
        self.events.append(f"failed {request_id} by {peer}")


class Pair:
    def __init__(
        self,
        store: Store,
        receiver: Identity = RECEIVER,
        timeout: float = 5,
        sender: Identity = SENDER,
    ) -> None:
        self.store = store
        self.sender = TcpTransport(sender, store, timeout)
        self.receiver = TcpTransport(receiver, Store(), timeout)
        self.address = PeerAddress("p0", fresh_host(), 0)

    async def __aenter__(self) -> Pair:
        port = await self.sender.start(self.address.host, 0)
        self.address = dataclasses.replace(self.address, port=port)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.receiver.stop()
        await self.sender.stop()

    async def pull(
        self, request: str = "r1", tokens: int = 64, sizes: tuple[int, ...] = ()
    ) -> bytes:
        buffers = [bytearray(n) for n in sizes or (len(DATA),)]
        views = [memoryview(b) for b in buffers]
        await self.receiver.pull(self.address, WantedKv(request, tokens), views)
        return b"".join(buffers)


@pytest.mark.parametrize("block", [1024, 65536, len(DATA)])
async def test_payload_lands_in_its_blocks(block: int) -> None:
    async with Pair(Store()) as pair:
        for _ in range(3):  # The second and third pull reuse the connection.
            assert await pair.pull(sizes=(block,) * (len(DATA) // block)) == DATA
        await asyncio.sleep(0)
        assert await pair.pull() == DATA
        assert pair.store.events[:3] == ["pulled r1 by d0"] * 3


async def test_many_pulls_at_once() -> None:
    async with Pair(Store()) as pair:
        assert set(await asyncio.gather(*(pair.pull() for _ in range(20)))) == {DATA}


REFUSED: dict[str, tuple[Identity, str]] = {
    "other secret": (dataclasses.replace(RECEIVER, keys=Trust("guess")), "wrong token"),
    "other model": (dataclasses.replace(RECEIVER, model="model-2"), "model model-1 here, model-2"),
    "not in the table": (dataclasses.replace(RECEIVER, id="d9"), "d9 is no peer"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_refused_in_the_handshake(case: str) -> None:
    identity, want = REFUSED[case]
    async with Pair(Store(), identity) as pair:
        with pytest.raises(TransportError, match=want):
            await pair.receiver.link(pair.address)
        with pytest.raises(TransportError, match=want):
            await pair.pull()
        assert pair.store.events == []


async def test_another_peer_at_the_address_is_noticed() -> None:
    async with Pair(Store()) as pair:
        wrong = dataclasses.replace(pair.address, id="p7")
        with pytest.raises(TransportError, match="is p0, not p7"):
            await pair.receiver.link(wrong)


async def test_no_listener() -> None:
    transport = TcpTransport(RECEIVER, Store(), 5)
    with pytest.raises(TransportError, match=r"p0 at 127\..*:9"):
        await transport.link(PeerAddress("p0", fresh_host(), 9))


BROKEN: dict[str, tuple[Store, str, int, tuple[int, ...], str]] = {
    "unknown request": (Store(), "r2", 64, (), "no KV held for request 'r2'"),
    "corrupt bytes": (Store(checksum=1), "r1", 64, (), "corrupt"),
    "other length": (Store(), "r1", 65, (), "64 tokens are held, 65 are asked for"),
    "other blocks": (Store(), "r1", 64, (1000,), "for 1000 bytes of blocks"),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_a_pull_that_cannot_be_used_raises(case: str) -> None:
    store, request, tokens, sizes, want = BROKEN[case]
    async with Pair(store) as pair:
        with pytest.raises(TransportError, match=want):
            await pair.pull(request, tokens, sizes)
        assert not any(e.startswith("pulled") for e in store.events)
        store.payload = Store().payload
        assert await pair.pull() == DATA  # The transport itself is still usable.


async def raw_server(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object],
) -> PeerAddress:
    """A peer that speaks the protocol its own way."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await talk(reader, writer)  # type: ignore[misc]

    server = await asyncio.start_server(serve, fresh_host(), 0)
    host, port = server.sockets[0].getsockname()[:2]
    return PeerAddress("p0", host, port)


async def read_frame(reader: asyncio.StreamReader) -> tuple[FrameKind, dict[str, object]]:
    """The next frame of a connection."""
    head = await reader.readexactly(protocol.HEAD.size)
    body = await reader.readexactly(protocol.HEAD.unpack(head)[3])
    found = protocol.decode(memoryview(head + body))
    assert found is not None
    return found[0], found[1]


async def _welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(protocol.encode(FrameKind.CHALLENGE, {"id": "p0", "nonce": "n"}))
    _, hello = await read_frame(reader)
    proof = protocol.mac(
        shared_proof("secret"),
        "server",
        server="p0",
        client="d0",
        nonces=("n", str(hello["nonce"])),
        model="model-1",
    )
    writer.write(protocol.encode(FrameKind.WELCOME, {"numerics": "bits", "mac": proof}))


async def test_an_impostor_server_is_noticed() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(protocol.encode(FrameKind.CHALLENGE, {"id": "p0", "nonce": "n"}))
        await read_frame(reader)
        writer.write(protocol.encode(FrameKind.WELCOME, {"numerics": "bits", "mac": "00"}))

    transport = TcpTransport(RECEIVER, Store(), 5)
    with pytest.raises(TransportError, match="does not know the key"):
        await transport.link(await raw_server(talk))


async def test_another_protocol_version_is_refused() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            protocol.HEAD.pack(b"PDKV", protocol.VERSION + 1, FrameKind.CHALLENGE, 2) + b"{}"
        )

    transport = TcpTransport(RECEIVER, Store(), 5)
    with pytest.raises(TransportError, match=f"speaks KV protocol {protocol.VERSION + 1}"):
        await transport.link(await raw_server(talk))


async def test_another_protocol_is_refused() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    transport = TcpTransport(RECEIVER, Store(), 5)
    with pytest.raises(TransportError, match="does not speak"):
        await transport.link(await raw_server(talk))


@pytest.mark.parametrize("sent", [0, 1, 70_000, len(DATA) - 1])
async def test_a_sender_that_dies_in_the_middle(sent: int) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _welcome(reader, writer)
        assert (await read_frame(reader))[0] is FrameKind.PULL
        head = {"tokens": 64, "bytes": len(DATA), "crc": zlib.crc32(DATA)}
        writer.write(protocol.encode(FrameKind.KV, head) + DATA[:sent])
        await writer.drain()
        writer.close()

    transport = TcpTransport(RECEIVER, Store(), 5)
    address = await raw_server(talk)
    with pytest.raises(TransportError, match="p0"):
        await transport.pull(address, WantedKv("r1", 64), [memoryview(bytearray(len(DATA)))])


async def test_a_sender_that_stalls_runs_into_the_timeout() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _welcome(reader, writer)
        await reader.read()

    transport = TcpTransport(RECEIVER, Store(), 0.2)
    with pytest.raises(TransportError, match="took longer than"):
        address = await raw_server(talk)
        await transport.pull(address, WantedKv("r1", 64), [memoryview(bytearray(8))])


async def test_pull_before_the_handshake_closes_the_connection() -> None:
    async with Pair(Store()) as pair:
        reader, writer = await asyncio.open_connection(pair.address.host, pair.address.port)
        await read_frame(reader)
        writer.write(protocol.encode(FrameKind.PULL, {"request": "r1"}))
        assert await reader.read() == b""
        writer.close()


async def test_the_loss_of_a_link_is_noticed() -> None:
    async with Pair(Store()) as pair:
        link = await pair.receiver.link(pair.address)
        lost = asyncio.create_task(link.lost())
        await asyncio.sleep(0)
        assert not lost.done()
        await pair.sender.stop()
        assert "clos" in await asyncio.wait_for(lost, 5) or "reset" in lost.result().lower()


FRAMES: dict[str, bytes] = {
    "not json": protocol.HEAD.pack(b"PDKV", protocol.VERSION, FrameKind.PING, 3) + b"{x}",
    "not an object": protocol.HEAD.pack(b"PDKV", protocol.VERSION, FrameKind.PING, 2) + b"[]",
    "unknown kind": protocol.HEAD.pack(b"PDKV", protocol.VERSION, 99, 2) + b"{}",
    "huge": protocol.HEAD.pack(b"PDKV", protocol.VERSION, FrameKind.PING, 1 << 30),
}


@pytest.mark.parametrize("case", FRAMES)
def test_malformed_frames_raise(case: str) -> None:
    with pytest.raises(TransportError, match="KV frame"):
        protocol.decode(memoryview(FRAMES[case]))


def test_incomplete_frames_wait() -> None:
    frame = protocol.encode(FrameKind.PULL, {"request": "r1"})
    for size in range(len(frame)):
        assert protocol.decode(memoryview(frame[:size])) is None
    assert protocol.decode(memoryview(frame + b"x")) == (
        FrameKind.PULL,
        {"request": "r1"},
        len(frame),
    )
