"""Flow of engines whose two legs meet in a room: both are sent at once, and the prefill pushes KV.

Each leg is the client's body with host and port of the prefill's bootstrap server and the number of
a room there, the same in both legs of one attempt and new in the next. The prefill answers when its
KV has gone over; the decode's reply is the client's. Facts of the bodies: SGLang's public
documentation. Headers are pdserve's own, as in `pull_flow`, which is the flow of engines whose
decode pulls the KV.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal
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
from pdserve.engines.pull_flow import MAX_REPLY, PullFlow
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.wire import names
from pdserve.wire.bounds import parse_json

HOST: Final = "bootstrap_host"
PORT: Final = "bootstrap_port"
ROOM: Final = "bootstrap_room"
MAX_ROOM: Final = (1 << 63) - 1


@dataclass(frozen=True)
class RoomFlow(PullFlow):
    """`EngineFlow` in which both legs are sent at once.

    `port`: of a prefill's bootstrap server. `withheld`: further fields that clients may not set,
    because engines find requests or workers by them.
    """

    order: Literal["prefill_first", "together"] = "together"
    port: int = names.PORT_TRANSFER
    withheld: frozenset[str] = frozenset()

    def prepare_prefill(self, endpoint: Endpoint, body: JsonMap) -> bytes:
        """The client's body, without streaming: the engine ends it with token 1 by itself."""
        leg = self._of_client(body)
        leg.pop("stream_options", None)
        leg["stream"] = False
        return orjson.dumps(leg)

    def prepare_decode(
        self, endpoint: Endpoint, body: JsonMap, outcome: PrefillOutcome | None
    ) -> bytes:
        """The client's body; asks for usage when streaming."""
        leg = self._of_client(body)
        if leg.get("stream"):
            leg["stream_options"] = {**(leg.get("stream_options") or {}), "include_usage": True}
        return orjson.dumps(leg)

    def prefill_leg(self, attempt: LegAttempt, prepared: bytes) -> LegRequest:
        """The prepared body with the room."""
        return super().prefill_leg(attempt, self._with_room(attempt, prepared))

    def decode_leg(self, attempt: LegAttempt, prepared: bytes) -> LegRequest:
        """The prepared body with the same room."""
        return super().decode_leg(attempt, self._with_room(attempt, prepared))

    def read_prefill(self, body: JsonMap, reply: bytes) -> PrefillOutcome:
        """It holds nothing: its KV has gone over.

        Raises:
            FlowError: the reply is no completion with a count of the prompt's tokens.
        """
        try:
            usage = parse_json(reply, max_bytes=MAX_REPLY)["usage"]
            details = usage.get("prompt_tokens_details") or {}
            prompt = token_count(usage["prompt_tokens"])
            cached = token_count(details.get("cached_tokens"))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FlowError(f"prefill reply: {type(error).__name__}: {error}") from error
        return PrefillOutcome(False, None, None, prompt, cached, {})

    def release_leg(self, request_id: str) -> None:
        """None: a cut connection tells the engine."""

    def _of_client(self, body: JsonMap) -> JsonObject:
        own = self.withheld | {HOST, PORT, ROOM}
        return {name: value for name, value in body.items() if name not in own}

    def _with_room(self, attempt: LegAttempt, prepared: bytes) -> bytes:
        room = {
            HOST: urlsplit(attempt.prefill.endpoint).hostname,
            PORT: self.port,
            ROOM: room_of(attempt.request_id),
        }
        return prepared[:-1] + b"," + orjson.dumps(room)[1:]


def room_of(request_id: str) -> int:
    """The room of one attempt: 63 bits, as good as random."""
    return int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8], "big") >> 1


def meeting_place(body: Mapping[str, object]) -> tuple[str, int] | None:
    """Host and port of the bootstrap server in a leg's body; None where it has no room."""
    host, port, room = body.get(HOST), body.get(PORT), body.get(ROOM)
    numbers = type(port) is int and type(room) is int and 0 <= room <= MAX_ROOM
    if isinstance(host, str) and isinstance(port, int) and numbers:
        return host, port
    return None
