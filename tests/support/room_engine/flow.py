"""Requests: one body for both legs, with the prefill's host and a room of the attempt's own."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import orjson

from pdserve.engines.flow import Endpoint, LegAttempt, LegRequest, PrefillOutcome
from pdserve.engines.pull_flow import PullFlow

PORT = 8998


@dataclass(frozen=True)
class RoomFlow(PullFlow):
    """`EngineFlow` in which both legs are sent at once."""

    order: Literal["together"] = "together"  # type: ignore[assignment]

    def prepare_prefill(self, endpoint: Endpoint, body: Mapping[str, Any]) -> bytes:
        """The client's body; the prefill ends with token 1 by itself."""
        return orjson.dumps(dict(body))

    def prepare_decode(
        self, endpoint: Endpoint, body: Mapping[str, Any], outcome: PrefillOutcome | None
    ) -> bytes:
        """The same, with usage at a stream's end."""
        leg = dict(body)
        if leg.get("stream"):
            leg["stream_options"] = {**(leg.get("stream_options") or {}), "include_usage": True}
        return orjson.dumps(leg)

    def prefill_leg(self, attempt: LegAttempt, prepared: bytes) -> LegRequest:
        """With the room."""
        return super().prefill_leg(attempt, _with_room(attempt, prepared))

    def decode_leg(self, attempt: LegAttempt, prepared: bytes) -> LegRequest:
        """With the same room."""
        return super().decode_leg(attempt, _with_room(attempt, prepared))

    def read_prefill(self, body: Mapping[str, Any], reply: bytes) -> PrefillOutcome:
        """It holds nothing: its KV has gone over."""
        usage = orjson.loads(reply)["usage"]
        return PrefillOutcome(False, None, None, usage["prompt_tokens"], 0, {})

    def release_leg(self, request_id: str) -> None:  # type: ignore[override]
        """A cut connection tells it."""


def _with_room(attempt: LegAttempt, prepared: bytes) -> bytes:
    digest = hashlib.sha256(attempt.request_id.encode()).digest()
    room = {
        "bootstrap_host": urlsplit(attempt.prefill.endpoint).hostname,
        "bootstrap_port": PORT,
        "bootstrap_room": int.from_bytes(digest[:8], "big") >> 1,
    }
    return prepared[:-1] + b"," + orjson.dumps(room)[1:]


FLOW = RoomFlow()
