"""A vLLM stub with a prefix cache that publishes its KV events as vLLM 0.32 does.

A byte of a prompt is a token. The publisher connects; the replay socket listens (ROUTER), and keeps
what was published until a test has it forget.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
from collections import OrderedDict
from typing import Any

import msgpack
import zmq
import zmq.asyncio
from tests.support.vllm_stub import VllmStub

SIZE = 16
"""Tokens of a block."""
Event = dict[str, Any]


def free_address() -> str:
    """A ZeroMQ address on loopback whose port is free now.

    On an address of this process alone: on 127.0.0.1 another one takes the port before its use.
    """
    process = os.getpid()
    host = f"127.101.{process >> 8 & 255}.{process & 255 or 1}"
    with socket.socket() as found:
        found.bind((host, 0))
        return f"tcp://{host}:{found.getsockname()[1]}"


class EventsPublisher:
    """The two sockets; numbers begin at 0 with each."""

    def __init__(self, endpoint: str, replay: str) -> None:
        self._context = zmq.asyncio.Context()
        self._pub = self._context.socket(zmq.PUB)
        self._pub.connect(endpoint)
        self._replay = self._context.socket(zmq.ROUTER)
        try:
            self._replay.bind(replay)
        except zmq.ZMQError:
            # A context that is left to the garbage collector may hold up the whole process there.
            self._context.destroy(linger=0)
            raise
        self.sent: list[tuple[int, bytes]] = []
        """What can be replayed."""
        self.number = 0
        self.replays = 0
        self._task = asyncio.create_task(self._answer())

    async def publish(self, *events: Event, lost: bool = False) -> None:
        """Send a batch; `lost`: it can only be had by a replay."""
        await self.publish_raw(msgpack.packb([0.5, list(events), 0]), lost=lost)

    async def publish_raw(self, payload: bytes, *, lost: bool = False) -> None:
        message = self.number, payload
        self.sent.append(message)
        self.number += 1
        if not lost:
            await self._pub.send_multipart((b"", message[0].to_bytes(8, "big"), payload))
        await asyncio.sleep(0.01)  # sending alone lets nothing else run

    async def _answer(self) -> None:
        while True:
            name, _, first = await self._replay.recv_multipart()
            self.replays += 1
            for number, payload in self.sent:
                if number >= int.from_bytes(first, "big"):
                    data = (name, b"", number.to_bytes(8, "big"), payload)
                    await self._replay.send_multipart(data)
            await self._replay.send_multipart((name, b"", b"\xff" * 8, b""))

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._context.destroy(linger=0)


class CachingVllmStub(VllmStub):
    """Caches blocks of prompts, and publishes what it stores, finds and gives up."""

    publisher: EventsPublisher | None = None
    room = 1000
    """Blocks."""
    reports = True
    """It is of a version that knows sessions and full reports."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.cache: OrderedDict[bytes, None] = OrderedDict()
        self._sending: set[asyncio.Task[None]] = set()

    def computed(self, body: dict[str, Any], value: dict[str, Any]) -> None:
        if (body.get("kv_transfer_params") or {}).get("do_remote_decode") is not True:
            return
        tokens = body["prompt"].encode()
        digest, chain = str(body.get("cache_salt")).encode(), []
        for start in range(0, len(tokens) - SIZE + 1, SIZE):
            digest = hashlib.sha256(digest + tokens[start : start + SIZE]).digest()
            chain.append(digest)
        found = next((n for n, block in enumerate(chain) if block not in self.cache), len(chain))
        value["usage"]["prompt_tokens"] = len(tokens)
        value["usage"]["prompt_tokens_details"] = {"cached_tokens": SIZE * found}
        events = []
        if self.reports and body.get("vllm_xargs") == {"kv_cache_report_mode": "full"} and found:
            events.append(self._stored(body, chain[:found], None))
        if found < len(chain):
            parent = chain[found - 1] if found else None
            events.append(self._stored(body, chain[found:], parent))
        for block in reversed(chain):
            self.cache[block] = None
            self.cache.move_to_end(block)
        while len(self.cache) > self.room:
            gone, _ = self.cache.popitem(last=False)
            removed = {"type": "BlockRemoved", "block_hashes": [gone], "medium": "GPU"}
            events.append(removed | {"group_idx": 0})
        if self.publisher is not None and events:
            task = asyncio.create_task(self.publisher.publish(*events))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    def _stored(self, body: dict[str, Any], blocks: list[bytes], parent: bytes | None) -> Event:
        event: Event = {
            "type": "BlockStored", "block_hashes": blocks, "parent_block_hash": parent,
            "token_ids": [0] * SIZE * len(blocks), "block_size": SIZE, "lora_id": None,
            "medium": "GPU", "lora_name": None, "group_idx": 0,
        }  # fmt: skip
        if self.reports and body.get("session_id"):
            event["session_id"] = body["session_id"]
        return event
