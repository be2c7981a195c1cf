"""One end of a KV transfer as a process of its own: the engine's transport, on one CPU core.

`send` listens and holds KV of every size; it prints its port. `receive` reads one JSON order a line
from standard input (`Order`), pulls, and prints the seconds of each pull. With `--unchecked` the
checksum function returns 0 on both ends, and all else stays as it is: what the check costs is the
difference. Used by `benchmarks/kv.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np
import uvloop

from pdserve.engines.trust import Trust
from pdserve.refengine.kv import integrity
from pdserve.refengine.kv.frames import FrameConnection
from pdserve.refengine.kv.kv_transport import Identity, PeerAddress, WantedKv
from pdserve.refengine.kv.payload import Payload, landing
from pdserve.refengine.kv.tcp import TcpTransport
from pdserve.refengine.model.model_config import BLOCK_TOKENS

HOST = "127.0.0.1"
CONGESTION = "reno"
"""Of all connections of the bench. Others pace: on loopback they measure their own clock."""
TIMEOUT = 60.0


@dataclass(frozen=True)
class Order:
    """Pull `times` times the KV of `size` bytes in blocks of `block` bytes.

    `each`: blocks in a frame; 0: as is usual. `scattered`: into blocks in random order.
    """

    size: int
    block: int
    times: int
    each: int = 0
    scattered: bool = False

    @property
    def request(self) -> str:
        """The name under which a sender holds such KV."""
        return f"{self.size}/{self.block}/{self.each}"

    @property
    def blocks(self) -> int:
        """How many blocks it has."""
        return self.size // self.block

    def line(self) -> str:
        """As `receive` reads it."""
        return json.dumps(asdict(self))


class Held:
    """An exporter that has KV for every request, made at the first pull."""

    def __init__(self) -> None:
        self._made: dict[str, Payload] = {}
        self._data = os.urandom(1 << 20)

    def admits(self, peer: str) -> str | None:
        """Every peer."""
        return None

    def export(self, request_id: str, peer: str) -> Payload | None:
        """KV by `Order.request`."""
        if request_id not in self._made:
            size, block, each = map(int, request_id.split("/"))
            # Memory as numpy gets it, as that of `gather` is: in large pages where there are any.
            data = np.resize(np.frombuffer(self._data, np.uint8), size).data
            payload = Payload.of(size // block * BLOCK_TOKENS, data, each)
            self._made = {request_id: payload}  # one at a time, or memory runs short
        return self._made[request_id]

    def pulled(self, request_id: str, peer: str) -> None:
        """Keep it."""

    def pull_failed(self, request_id: str, peer: str) -> None:
        """Keep it."""


_MADE = FrameConnection.connection_made


def connection_made(self: FrameConnection, made: asyncio.BaseTransport) -> None:
    """What both ends of a connection do first."""
    _MADE(self, made)
    raw = made.get_extra_info("socket")
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION.encode())


def transport(name: str, each: int = 0) -> TcpTransport:
    """That of a process called `name`."""
    return TcpTransport(Identity(name, Trust("bench"), "m", "n"), Held(), TIMEOUT, each)


async def send() -> None:
    """Listen until the process is killed."""
    print(await transport("p").start(HOST, 0), flush=True)
    await asyncio.Event().wait()


async def receive(port: int) -> None:
    """Carry out orders."""
    loop, address = asyncio.get_running_loop(), PeerAddress("p", HOST, port)
    receivers: dict[int, TcpTransport] = {}
    ready, buffers = "", list[memoryview]()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = Order(**json.loads(line))
        receiver = receivers.setdefault(order.each, transport("d", order.each))
        wanted = WantedKv(order.request, order.blocks * BLOCK_TOKENS)
        memory = f"{order.request} {order.scattered}"
        if memory != ready:
            ready, buffers = memory, blocks_of(order)
            await receiver.pull(address, wanted, buffers)  # makes the KV, and touches all pages
        times = []
        for _ in range(order.times):
            begin = time.perf_counter()
            await receiver.pull(address, wanted, buffers)
            times.append(time.perf_counter() - begin)
        print(json.dumps(times), flush=True)


def blocks_of(order: Order) -> list[memoryview]:
    """Memory of the blocks that a pull fills, in a pool as an engine has it."""
    pool = np.zeros((order.blocks, order.block // 4), np.float32)
    blocks = list(range(order.blocks))
    if order.scattered:
        random.Random(0).shuffle(blocks)
    return landing(pool, blocks, order.blocks * BLOCK_TOKENS)


def main() -> None:
    """Run one end."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("end", choices=("send", "receive"))
    p.add_argument("--core", type=int, required=True)
    p.add_argument("--port", type=int, default=0, help="receive: where the sender listens")
    p.add_argument("--unchecked", action="store_true")
    a = p.parse_args()
    os.sched_setaffinity(0, {a.core})
    FrameConnection.connection_made = connection_made  # type: ignore[method-assign]  # and TCP_CONGESTION
    if a.unchecked:
        integrity.checksum = lambda data, before=0: 0  # type: ignore[assignment]  # costs nothing
    uvloop.run(send() if a.end == "send" else receive(a.port))


if __name__ == "__main__":
    main()
