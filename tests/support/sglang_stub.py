"""An SGLang server with prefill and decode apart, as its public documentation describes it.

No SGLang was run to make this. What it keeps: both legs carry host and port of the prefill's
bootstrap server and a room; a prefill computes nothing before the decode of its room is there, and
answers when its KV has gone over; the decode generates from token 1 on; a leg whose peer does not
come waits; a request whose client goes away is aborted, and the leg in its room fails.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Any

import orjson
from tests.support.vllm_stub import MODEL, Fabric, VllmStub, error_body

from pdserve.engines.room_flow import HOST, PORT, ROOM
from pdserve.terms import Role
from pdserve.wire.names import PORT_TRANSFER


@dataclass
class Room:
    """Where the two legs of one attempt meet."""

    decode_there: asyncio.Event = field(default_factory=asyncio.Event)
    kv_sent: asyncio.Event = field(default_factory=asyncio.Event)
    failed: bool = False


class SglangStub(VllmStub):
    """One server; scripted as its base is."""

    def __init__(self, fabric: Fabric, role: Role, host: str, **options: Any) -> None:
        super().__init__(fabric, **options)
        self.role, self.host = role, host
        self.side_port = PORT_TRANSFER if role == "prefill" else 0
        self.rooms: dict[int, Room] = {}
        """Of a prefill."""

    def exposition(self) -> str:
        return f'sglang:num_running_reqs{{model_name="m"}} {self.running}.0\n'

    async def kill(self) -> None:
        for room in self.rooms.values():
            room.failed = True
            room.kv_sent.set()
        self.fabric.holders.pop((self.host, self.side_port), None)
        await super().kill()

    def room(self, body: dict[str, Any]) -> Room:
        """The room that a leg names; raises ValueError without a bootstrap server there."""
        prefill = self.fabric.holders.get((body[HOST], body[PORT]))
        if not isinstance(prefill, SglangStub):
            raise ValueError("no bootstrap server")
        return prefill.rooms.setdefault(body[ROOM], Room())

    async def _generate(
        self, path: str, headers: dict[str, str], body: dict[str, Any],
        writer: asyncio.StreamWriter,
    ) -> bool:  # fmt: skip
        if body.get("temperature", 0) < 0:
            return self._send(writer, 400, error_body("temperature must be non-negative"))
        if body["model"] != MODEL:
            return self._send(writer, 404, error_body("no such model"))
        self.seen.append(body)
        self.running += 1
        room = None
        try:
            room = self.room(body)
            if self.role == "prefill":
                return await self._prefill(path, headers, body, room, writer)
            room.decode_there.set()
            await room.kv_sent.wait()
            loaded = not (room.failed or self.breaks_pulls)
            if body.get("stream"):
                return await self._stream(path, body, writer, loaded=loaded)
            if not loaded:
                return self._send(writer, 500, error_body("KV transfer failed"))
            for _ in range(body.get("max_tokens") or self.tokens):
                await self._token()
            return self._send(writer, 200, orjson.dumps(self._whole(path, headers, body)))
        except ValueError as error:
            return self._send(writer, 500, error_body(str(error)))
        except asyncio.CancelledError:
            if room is not None:
                room.failed = True
                room.kv_sent.set()
            raise
        finally:
            self.running -= 1

    async def _prefill(
        self, path: str, headers: dict[str, str], body: dict[str, Any], room: Room,
        writer: asyncio.StreamWriter,
    ) -> bool:  # fmt: skip
        await room.decode_there.wait()
        await self._token()
        room.kv_sent.set()
        with contextlib.suppress(KeyError):
            del self.rooms[body[ROOM]]
        value = self._whole(path, headers, {**body, "max_tokens": 1})
        return self._send(writer, 200, orjson.dumps(value))
