"""KV goes to the addresses of devices where a table names them, and never depends on them.

The addresses are on loopback; the kernel counts the bytes of each connection, so a test sees which
addresses KV took.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import socket
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.support.engines import Client, EngineProcess, Group, fresh_host, until
from tests.unit.refengine.conftest import Start
from tests.unit.refengine.test_transport import read_frame

from pdserve.engines.trust import Trust, shared_proof
from pdserve.refengine.kv import protocol
from pdserve.refengine.kv.device_addresses import usable_addresses
from pdserve.refengine.kv.kv_transport import (
    Identity,
    PeerAddress,
    TransportError,
    WantedKv,
)
from pdserve.refengine.kv.paths import KvPaths, PeerDevices
from pdserve.refengine.kv.payload import Payload
from pdserve.refengine.kv.protocol import FrameKind
from pdserve.refengine.kv.tcp import TcpTransport
from pdserve.terms import Device
from pdserve.wire import metrics

DATA = bytes(range(256)) * 1024
HANDSHAKES = 16 << 10
"""Bytes that a connection without KV takes at most."""
_BYTES_RECEIVED = 128
"""Offset of `tcpi_bytes_received` in `struct tcp_info` (linux/tcp.h)."""


class Store:
    """An exporter that has KV for every request; the next `corrupt` times it is damaged."""

    corrupt = 0

    def admits(self, peer: str) -> str | None:
        return None

    def export(self, request_id: str, peer: str) -> Payload | None:
        payload = Payload.of(64, memoryview(DATA))
        if not self.corrupt:
            return payload
        self.corrupt -= 1
        return dataclasses.replace(payload, checksums=(1,))

    def pulled(self, request_id: str, peer: str) -> None:
        pass

    def pull_failed(self, request_id: str, peer: str) -> None:
        pass


class Ends:
    """A prefill with devices and a decode with devices, both in this process."""

    def __init__(
        self,
        prefill: Sequence[str | None],
        decode: Sequence[str | None] = (),
        name: str = "p0",
        told: str = "p0",
    ) -> None:
        """`name` is the prefill's own; the decode's table calls it `told`."""
        trust = Trust("secret")
        self.prefill, self.decode = prefill, decode
        self.store = Store()
        self.sender = TcpTransport(Identity(name, trust, "m", "n"), self.store, 5)
        self.receiver = TcpTransport(Identity("d0", trust, "m", "n"), Store(), 5)
        self.counted: Counter[tuple[str, str]] = Counter()
        self.corrupt: list[str] = []
        counters = (self._count, self.corrupt.append)
        self.serving = KvPaths(self.sender, self.sender.listeners, False, *counters)
        self.paths = KvPaths(self.receiver, self.receiver.listeners, True, *counters)
        self.pod = PeerAddress(told, fresh_host(), 0)
        self.own = fresh_host()

    def _count(self, path: str, reason: str) -> None:
        self.counted[path, reason] += 1

    async def __aenter__(self) -> Ends:
        port = await self.sender.start(self.pod.host, 0)
        self.pod = dataclasses.replace(self.pod, port=port)
        await self.receiver.start(self.own, 0)
        self.serve()
        self.switch()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.paths.close()
        self.serving.close()
        await self.receiver.stop()
        await self.sender.stop()

    def serve(self) -> None:
        """The prefill takes its table."""
        self.serving.switch(self._usable(self.prefill, self.pod.host), {})

    def switch(self) -> None:
        """The decode takes its table."""
        devices = PeerDevices(
            self._usable(self.prefill, self.pod.host), any(ip for ip in self.prefill)
        )
        self.paths.switch(self._usable(self.decode, self.own), {self.pod: devices})

    @staticmethod
    def _usable(ips: Sequence[str | None], pod: str) -> tuple[str, ...]:
        return usable_addresses([Device(i, ip) for i, ip in enumerate(ips)], pod)

    async def pull(self) -> None:
        """One pull whose bytes are checked."""
        buffer = bytearray(len(DATA))
        await self.paths.pull(self.pod.id, WantedKv("r1", 64), [memoryview(buffer)])
        assert buffer == DATA

    async def pulled(self, path: str, reason: str = "", more: int = 1) -> None:
        """Pull until that many more pulls were counted so."""
        want = self.counted[path, reason] + more

        async def enough() -> bool:
            await self.pull()
            return self.counted[path, reason] >= want

        await until(enough, f"pulls by {path} {reason}: {dict(self.counted)}", 60)


def received_by_connection() -> dict[tuple[str, str], int]:
    """Bytes received on all open connections of this process, by (own host, other host)."""
    found: Counter[tuple[str, str]] = Counter()
    for entry in list(Path("/proc/self/fd").iterdir()):
        try:
            copy = socket.socket(fileno=os.dup(int(entry.name)))
        except OSError:
            continue
        with copy:
            try:
                here, there = copy.getsockname()[0], copy.getpeername()[0]
                info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            except (OSError, IndexError):
                continue
            found[here, there] += struct.unpack_from("=Q", info, _BYTES_RECEIVED)[0]
    return found


async def test_kv_goes_from_a_devices_address_to_a_devices_address() -> None:
    theirs, mine = fresh_host(), fresh_host()
    async with Ends([theirs], [mine]) as ends:
        await ends.pulled("device", more=4)
        received = received_by_connection()
        assert received[mine, theirs] >= 4 * len(DATA)
        by_pod = ends.counted.total() - ends.counted["device", ""]
        others = sum(n for (_, there), n in received.items() if there == ends.pod.host)
        assert others <= by_pod * len(DATA) + HANDSHAKES


async def test_devices_are_taken_in_turn_and_by_position() -> None:
    theirs, mine = [fresh_host() for _ in range(3)], [fresh_host() for _ in range(3)]
    async with Ends(theirs, mine) as ends:
        await ends.pulled("device", more=12)
        received = received_by_connection()
        for here, there in zip(mine, theirs, strict=True):
            assert received[here, there] >= 2 * len(DATA), (here, there)
        pairs = set(zip(mine, theirs, strict=True))
        assert {pair for pair in received if pair[1] in theirs} == pairs


async def test_a_decode_without_devices_pulls_from_devices_all_the_same() -> None:
    theirs = fresh_host()
    async with Ends([theirs]) as ends:
        await ends.pulled("device")


PODS_ADDRESS: dict[str, tuple[Sequence[str | None], str]] = {
    "no devices": ((), "no_address"),
    "no address known": ((None, None), "no_address"),
    "a name": (("device.example.com",), "unusable"),
    "every address": (("0.0.0.0",), "unusable"),
    "multicast": (("224.0.0.1",), "unusable"),
    "link-local": (("fe80::1", "169.254.1.1"), "unusable"),
    "not this machine's": (("198.51.100.7",), "not_listening"),
    "of the other family, not this machine's": (("2001:db8::7",), "not_listening"),
}


@pytest.mark.parametrize("case", PODS_ADDRESS)
async def test_without_a_usable_device_kv_goes_to_the_pod_and_is_counted(case: str) -> None:
    prefill, reason = PODS_ADDRESS[case]
    async with Ends(prefill) as ends:
        await ends.pulled("pod", reason)
        assert not ends.counted["device", ""]


async def test_an_engine_of_an_older_version_is_pulled_from_at_its_pod() -> None:
    """It says nothing of devices, and listens at none."""
    async with Ends([fresh_host()]) as ends:
        ends.sender.listeners.stop()
        await ends.pulled("pod", "not_listening")


async def test_another_peer_at_the_devices_address_gets_no_pull() -> None:
    """A node's annotation names an address of another node, and the peer claims to listen there."""
    theirs = fresh_host()
    port = await _claiming("p1", pod := fresh_host(), theirs)
    async with Ends([theirs], told="p1") as ends:
        other = TcpTransport(Identity("p0", Trust("secret"), "m", "n"), Store(), 5)
        await other.start(theirs, port)
        ends.pod = PeerAddress("p1", pod, port)
        ends.switch()
        await ends.pulled("pod", "unreachable")
        assert not ends.counted["device", ""]
        await other.stop()


async def _claiming(name: str, host: str, address: str) -> int:
    """A peer that says that it listens at `address`; returns its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(protocol.encode(FrameKind.CHALLENGE, {"id": name, "nonce": "n"}))
        hello = (await read_frame(reader))[1]
        proof = protocol.mac(
            shared_proof("secret"), "server", server=name, client="d0",
            nonces=("n", str(hello["nonce"])), model="m",
        )  # fmt: skip
        welcome = {"numerics": "n", "mac": proof, "devices": [address, 7, None]}
        writer.write(protocol.encode(FrameKind.WELCOME, welcome))
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                if (await read_frame(reader))[0] is FrameKind.PULL:
                    head = {"tokens": 64, "bytes": len(DATA), "crc": zlib.crc32(DATA)}
                    writer.write(protocol.encode(FrameKind.KV, head) + DATA)

    server = await asyncio.start_server(serve, host, 0)
    return int(server.sockets[0].getsockname()[1])


async def test_a_device_that_is_lost_is_left_for_the_pod_in_the_same_pull() -> None:
    async with Ends([fresh_host()]) as ends:
        await ends.pulled("device")
        await ends.sender.stop()
        await ends.sender.start(ends.pod.host, ends.pod.port)
        await ends.pull()
        assert ends.counted["pod", "unreachable"] == 1


async def test_a_device_told_later_is_used_from_then_on() -> None:
    async with Ends([None]) as ends:
        await ends.pulled("pod", "no_address")
        ends.prefill = [fresh_host()]
        ends.serve()
        ends.switch()
        await ends.pulled("device")


async def test_a_table_that_says_nothing_new_keeps_what_is_verified() -> None:
    async with Ends([fresh_host()]) as ends:
        await ends.pulled("device")
        others = ends.counted.total() - ends.counted["device", ""]
        ends.switch()
        await ends.pull()
        assert ends.counted.total() - ends.counted["device", ""] == others


async def test_nothing_is_pulled_from_what_is_in_no_table() -> None:
    async with Ends([fresh_host()]) as ends:
        ends.paths.switch((), {})
        with pytest.raises(TransportError, match="not in this instance's peer table"):
            await ends.pull()


async def test_an_address_that_left_the_table_is_listened_at_no_more() -> None:
    first, second = fresh_host(), fresh_host()
    async with Ends([first, second]) as ends:
        await ends.pulled("device", more=2)
        ends.prefill = [second]
        ends.serve()
        with pytest.raises(OSError):
            await asyncio.open_connection(first, ends.pod.port)
        _, writer = await asyncio.open_connection(second, ends.pod.port)
        writer.close()


def _ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as made:
            made.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _ipv6(), reason="no IPv6 on this machine")
async def test_a_device_may_be_on_ipv6_where_the_pod_is_on_ipv4() -> None:
    async with Ends(["::0001"], [fresh_host()]) as ends:
        await ends.pulled("device")
        assert received_by_connection()["::1", "::1"] >= len(DATA)


@pytest.mark.parametrize("everywhere", ["::", "0.0.0.0"])
async def test_a_listener_on_every_address_answers_at_the_devices_too(everywhere: str) -> None:
    theirs, foreign = fresh_host(), "198.51.100.7"
    transport = TcpTransport(Identity("p0", Trust("secret"), "m", "n"), Store(), 5)
    told: list[tuple[int, int]] = []
    transport.listeners.changed = lambda listening, missing: told.append((listening, missing))
    port = await transport.start(everywhere, 0)
    transport.listeners.listen((theirs, foreign))
    assert transport.listeners.listening == (theirs,)
    assert list(transport.listeners.missing) == [foreign]
    assert told[-1] == (1, 1)
    _, writer = await asyncio.open_connection(theirs, port)
    writer.close()
    await transport.stop()


async def test_engine_processes_move_kv_by_their_devices(start: Start, client: Client) -> None:
    prefill = await start(EngineProcess("prefill", devices=[fresh_host(), fresh_host()]))
    decode = await start(EngineProcess("decode", devices=[fresh_host(), "198.51.100.7"]))
    group = Group(client, [prefill], [decode])
    await group.push()
    body = {"model": "reference", "prompt": "Once upon a time", "max_tokens": 4}

    async def by_device() -> bool:
        reply = await group.generate("/v1/completions", body)
        assert reply.status == 200, reply.body
        text = (await group.client.call("GET", decode.url + "/metrics")).body
        return f'{metrics.KV_PULLS}{{path="device",reason=""}}' in text

    await until(by_device, "a pull from a device", 60)
    url = decode.url + "/pdserve/v1/info"
    info = (await group.client.call("GET", url)).body
    assert info["kvDevices"]["listening"] == [decode.devices[0]]
    assert list(info["kvDevices"]["missing"]) == ["198.51.100.7"]
    assert (
        await group.client.metric(decode, f'{metrics.KV_DEVICE_ADDRESSES}{{state="missing"}}') == 1
    )
