"""Requests: one body for both legs, with the prefill's host and a room of the attempt's own."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import orjson

from pdserve.engines.flow import (
    Endpoint,
    FlowError,
    LegAttempt,
    LegRequest,
    PrefillOutcome,
    token_count,
)
from pdserve.engines.pull_flow import PullFlow
from pdserve.wire.bounds import parse_json

PORT = 8998


@dataclass(frozen=True)
class RoomFlow(PullFlow):
    """`EngineFlow` in which both legs are sent at once."""

    order: Literal["together"] = "together"  # type: ignore[assignment]

    def prepare_prefill(self, endpoint: Endpoint, body: Mapping[str, Any]) -> bytes:
        """The client's body; the prefill ends with token 1 by itself."""
        return orjson.dumps(_of_client(body))

    def prepare_decode(
        self, endpoint: Endpoint, body: Mapping[str, Any], outcome: PrefillOutcome | None
    ) -> bytes:
        """The same, with usage at a stream's end."""
        leg = _of_client(body)
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
        try:
            tokens = token_count(parse_json(reply)["usage"]["prompt_tokens"])
        except (KeyError, TypeError, ValueError) as error:
            raise FlowError(f"prefill reply: {type(error).__name__}: {error}") from error
        return PrefillOutcome(False, None, None, tokens, 0, {})

    def release_leg(self, request_id: str) -> None:  # type: ignore[override]
        """A cut connection tells it."""


_FIELDS = ("bootstrap_host", "bootstrap_port", "bootstrap_room")


def _of_client(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in _FIELDS}


def _with_room(attempt: LegAttempt, prepared: bytes) -> bytes:
    digest = hashlib.sha256(attempt.request_id.encode()).digest()
    room = {
        "bootstrap_host": urlsplit(attempt.prefill.endpoint).hostname,
        "bootstrap_port": PORT,
        "bootstrap_room": int.from_bytes(digest[:8], "big") >> 1,
    }
    return prepared[:-1] + b"," + orjson.dumps(room)[1:]


FLOW = RoomFlow()
