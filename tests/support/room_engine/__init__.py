"""An engine type whose legs go out together, and its stub: SGLang's way, at the network boundary.

Both legs name a room at the prefill. A prefill computes nothing before the decode of its room is
there, and a decode begins its reply when the prefill has sent the KV: a gateway that sends one leg
after the other waits for ever.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import orjson
from tests.support.stub_engine import Cluster, StubEngine, completion

from pdserve.http1.receive import HttpRequest
from pdserve.http1.reply import Reply


@dataclass
class Room:
    """Where the two legs of one attempt meet."""

    decode_there: asyncio.Event = field(default_factory=asyncio.Event)
    kv_sent: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Rooms(Cluster):
    """All rooms, by number."""

    rooms: dict[int, Room] = field(default_factory=dict)

    def room(self, body: dict[str, Any]) -> Room:
        return self.rooms.setdefault(body["bootstrap_room"], Room())


class RoomEngine(StubEngine):
    """One instance; scripted as its base is."""

    cluster: Rooms

    async def _prefill(
        self, request: HttpRequest, body: dict[str, Any], chat: bool, reply: Reply, *, keeps: bool
    ) -> None:
        room = self.cluster.room(body)
        self.running += 1
        try:
            await room.decode_there.wait()
            room.kv_sent.set()
            if self.gate is not None:
                await self.gate.wait()
        finally:
            self.running -= 1
        value = completion(chat, "t0", 1, self.prompt_tokens, "length")
        reply.send(200, orjson.dumps(value), "application/json", self._hint())

    async def _decode(
        self, body: dict[str, Any], chat: bool, reply: Reply, step: str, *, early: bool
    ) -> None:
        room = self.cluster.room(body)
        self.running += 1
        try:
            room.decode_there.set()
            await room.kv_sent.wait()
            await self._tokens(body, chat, reply, step)
        finally:
            self.running -= 1
