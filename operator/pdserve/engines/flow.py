"""How one engine type wants a request split into a prefill leg and a decode leg.

The gateway owns time, retries and streams; a flow owns bodies: what is sent to prefill, what its
reply means, what is sent to decode, and what the client gets when token 1 already ended the
request. Pure functions over JSON values. Neighbours: `flow_reference` implements vLLM's contract
(the Reference engine speaks it too); `wire.http` names the headers around these bodies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as shown
from typing import Any, Literal, Protocol

Endpoint = Literal["chat", "completions"]
MAX_TOKENS = 1 << 31
"""More than any context has: a larger count is nonsense."""


class FlowError(ValueError):
    """An engine's reply does not follow its contract; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class PrefillOutcome:
    """What a 200 reply of the prefill leg means.

    `finished`: token 1 ended the request (stop, EOS, or the client asked for one token), so there
    is no decode leg. `kv`: opaque parameters for decode, None when the prefill holds nothing.
    `release_id`: the name under which the prefill holds KV, for an explicit release.
    """

    finished: bool
    kv: Mapping[str, Any] | None
    release_id: str | None
    prompt_tokens: int
    cached_tokens: int
    reply: Mapping[str, Any]
    """The whole reply, for `finished_reply`."""


@dataclass(frozen=True, slots=True)
class FinishedReply:
    """Client answer made from a prefill reply alone; `body` is JSON or a whole SSE stream."""

    body: bytes
    content_type: str
    completion_tokens: int


class EngineFlow(Protocol):
    """Request path of one engine type. Implementations hold no state."""

    first_token: Literal["prefill", "decode"]
    """Which leg samples token 1. The decode leg delivers it to the client in both cases."""
    lease_seconds: float
    """How long a prefill keeps KV that nobody pulled, counted from its reply."""

    def prefill_body(self, endpoint: Endpoint, body: Mapping[str, Any]) -> bytes:
        """Body of the prefill leg: one token, not streamed, KV kept for a remote decode."""
        ...

    def read_prefill(self, body: Mapping[str, Any], reply: bytes) -> PrefillOutcome:
        """Interpret a 200 reply of the prefill leg to the client's `body`; raises FlowError."""
        ...

    def decode_body(self, body: Mapping[str, Any], outcome: PrefillOutcome) -> bytes:
        """Body of the decode leg. A stream always asks for the final usage chunk."""
        ...

    def finished_reply(
        self, endpoint: Endpoint, body: Mapping[str, Any], outcome: PrefillOutcome
    ) -> FinishedReply:
        """What the client gets when `outcome.finished`; raises FlowError."""
        ...


def token_count(value: Any) -> int:
    """A count from an engine's `usage` (0 when absent).

    Raises ValueError: not a whole number of tokens that an engine can have seen or made.
    """
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_TOKENS:
        raise ValueError(f"a count of tokens is {shown(value)}")
    return value
