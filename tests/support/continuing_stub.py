"""A stub engine whose streams can go on from another one: tokens have the ids 100, 101, ..."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from tests.support.stub_engine import StubEngine

from pdserve.http1.reply import Reply

FIRST_ID = 100


class ContinuingStub(StubEngine):
    """Names the tokens of its streams, and goes on after those of a replay.

    `cut:N` counts the tokens of one leg; `unended`: lost after the last token.
    """

    old = False
    """It is of a version that knows neither."""
    kept: asyncio.Event | None = None
    """When set, a stream waits for it before each token but its first."""

    def amended(self, value: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
        """Say what a decode needs to go on, and hand a replay on."""
        params = value.get("kv_transfer_params")
        if params is not None:
            params["pdserve"] |= {"seed": 5, "cached_tokens": 2}
        replay = replay_of(body["kv_transfer_params"])
        if replay is None or self.old:
            return value
        value["id"] = replay["reply_id"]
        sent = len(replay["token_ids"])
        value["choices"][0]["text"] = f"t{sent} "
        value["usage"]["completion_tokens"] = sent + 1
        if params is not None:
            params["pdserve"]["replay"] = replay
        return value

    async def _tokens(self, body: dict[str, Any], chat: bool, reply: Reply, step: str) -> None:
        if not body.get("stream"):
            await super()._tokens(body, chat, reply, step)
            return
        kind, _, at = step.partition(":")
        named = self.headers[-1].get(b"x-pdserve-event-ids") == b"1" and not self.old
        replay = None if self.old else replay_of(body["kv_transfer_params"])
        sent = len(replay["token_ids"]) if replay else 0
        head = {
            "id": replay["reply_id"] if replay else body["kv_transfer_params"]["remote_request_id"],
            "object": "text_completion",
            "created": replay["created"] if replay else 1,
            "model": "tiny",
        }
        limit = body.get("max_tokens") or self.default_tokens
        for i in range(sent, limit):
            if kind == "cut" and i - sent == int(at):
                return
            if i > sent:
                await (self._pace() if self.kept is None else self.kept.wait())
            choice = {"index": 0, "text": f"t{i} ", "finish_reason": None}
            if i == limit - 1:
                choice["finish_reason"] = "length"
            data = b"data: %b\n" % orjson.dumps(head | {"choices": [choice]})
            data += b"id: %d\n\n" % (FIRST_ID + i) if named else b"\n"
            if reply.started:
                reply.write(data)
            else:
                reply.start(200, "text/event-stream", data, self._hint())
        if kind == "unended":
            return
        usage = {"prompt_tokens": self.prompt_tokens, "completion_tokens": limit}
        last = orjson.dumps(head | {"choices": [], "usage": usage})
        reply.end(b"data: %b\n\ndata: [DONE]\n\n" % last)


def replay_of(params: dict[str, Any]) -> dict[str, Any] | None:
    """What its client has, in the parameters of a leg."""
    return (params.get("pdserve") or {}).get("replay")
