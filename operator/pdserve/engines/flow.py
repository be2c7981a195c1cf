"""How one engine type serves a request: what is sent to prefill and decode, what replies mean.

The gateway owns time, retries, choice and streams; a flow owns everything that is particular to an
engine: paths, headers, bodies, reasons of refusals, slot hints, and the order of the legs. Flows
are pure functions over bytes and JSON values and hold no state.

Order of the legs (`EngineFlow.order`):

- `prefill_first`: prefill answers, its reply is made into the decode leg, a decode pulls the KV
  (vLLM's NIXL connector, vllm-ascend, MindIE, the Reference engine).
- `together`: one prefill and one decode of a group get the request at once and find each other by
  what both legs carry (SGLang: host and port of the prefill, and a room number). The decode's
  reply is the client's; the prefill's counts only where it refuses or fails, and then the decode
  leg is cut. A room number must be the same in both legs of one attempt and new in the next:
  derive it from `LegAttempt.request_id`.

The client's reply is always an OpenAI completion or an SSE stream of its chunks, whatever the
paths. Neighbours: `registry` finds flows; `pull_flow` is one to start from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as shown
from typing import Literal, Protocol, cast, runtime_checkable

from pdserve.terms.json import JsonMap
from pdserve.wire.hints import Hint
from pdserve.wire.routes import RouteInstance

Endpoint = Literal["chat", "completions"]
HeaderLines = tuple[tuple[bytes, bytes], ...]
"""Headers of a request in order, names in lower case."""
MAX_TOKENS = 1 << 31
"""More than any context has: a larger count is nonsense."""


class FlowError(ValueError):
    """An engine's reply does not follow its contract; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class LegAttempt:
    """One sending of one leg.

    `decode` is None on the prefill leg of a flow whose order is `prefill_first`: it is not chosen
    yet. `number` counts the request's attempts of this leg from 1. `passed_on` are the client's
    headers that every leg carries (trace context).
    """

    endpoint: Endpoint
    request_id: str
    """Names the request at the engines, at most 128 characters: new in every attempt of a prefill,
    and the same in the decode legs that follow it."""
    number: int
    prefill: RouteInstance
    decode: RouteInstance | None
    passed_on: HeaderLines
    deadline_ms: int | None
    """Milliseconds that are left for this leg; None: compute it however long it takes."""
    early_head: bool
    """The decode may say `102 Processing` once it has the KV: its reply comes whole, and late."""
    token_ids: bool = False
    """Events of the decode's stream name their tokens (`ContinuingFlow`)."""


@dataclass(frozen=True, slots=True)
class LegRequest:
    """A POST to an instance. The gateway adds host, content headers and its credential."""

    path: str
    body: bytes
    headers: HeaderLines = ()


@dataclass(frozen=True, slots=True)
class EngineAnswer:
    """What the head of a reply says.

    - `accepted`: the body is the answer.
    - `refused`: not taken, another instance may take it. `reason` is `wire.calls.REJECT_FULL`,
      `REJECT_DECODE_FULL`, `REJECT_DRAINING`, `REJECT_NOT_READY`, `REJECT_DEADLINE`, or `status`.
    - `kv_failed`: a decode could not get the KV; another one may.
    - `client_error`: the request itself is wrong; the body tells the client why.
    - `failed`: a fault of the instance.
    """

    kind: Literal["accepted", "refused", "kv_failed", "client_error", "failed"]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PrefillOutcome:
    """What a 200 reply of the prefill leg means.

    `finished`: token 1 ended the request (stop, EOS, or the client asked for one token), so there
    is no decode leg. `kv`: opaque parameters for decode, None when the prefill holds nothing.
    `release_id`: the name under which the prefill holds KV, for an explicit release.
    """

    finished: bool
    kv: JsonMap | None
    release_id: str | None
    prompt_tokens: int
    cached_tokens: int
    reply: JsonMap
    """The whole reply, for `finished_reply`."""


@dataclass(frozen=True, slots=True)
class FinishedReply:
    """Client answer made from a prefill reply alone; `body` is JSON or a whole SSE stream."""

    body: bytes
    content_type: str
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class SentPart:
    """What of a streamed answer the client has from a decode that was lost.

    `tokens`: ids of all output tokens from the first on. `reply_id` and `created`: `id` and
    `created` of the events.
    """

    tokens: tuple[int, ...]
    reply_id: str
    created: int


@runtime_checkable
class EngineFlow(Protocol):
    """Request path of one engine type. Implementations hold no state.

    Each leg is made in two steps: `prepare_*` once, whatever is tried how often, and `*_leg` for
    each attempt. `body` is the client's, checked, with the model name that engines know.
    """

    @property
    def order(self) -> Literal["prefill_first", "together"]:
        """When the decode leg is sent; see the module's text."""

    @property
    def first_token(self) -> Literal["prefill", "decode"]:
        """Which leg samples token 1. The decode leg delivers it to the client in both cases; the
        reply of a prefill that samples none is no first token in the gateway's times.
        """

    @property
    def lease_seconds(self) -> float:
        """How long a prefill keeps KV that no decode pulled, counted from its reply."""

    def prepare_prefill(self, endpoint: Endpoint, body: JsonMap) -> bytes:
        """What all prefill legs of a request share."""

    def prefill_leg(self, attempt: LegAttempt, prepared: bytes) -> LegRequest:
        """One prefill leg."""

    def read_prefill(self, body: JsonMap, reply: bytes) -> PrefillOutcome:
        """Interpret an accepted prefill leg's reply to the client's `body`.

        Raises:
            FlowError: the reply is off contract.
        """

    def prepare_decode(
        self, endpoint: Endpoint, body: JsonMap, outcome: PrefillOutcome | None
    ) -> bytes:
        """What all decode legs after one prefill share; `outcome` is None for `together`.

        A stream must end with a chunk of the usage; the gateway takes it out again for clients
        that did not ask for it.

        Raises:
            FlowError: no leg can be made of this request.
        """

    def decode_leg(self, attempt: LegAttempt, prepared: bytes) -> LegRequest:
        """One decode leg."""

    def finished_reply(
        self, endpoint: Endpoint, body: JsonMap, outcome: PrefillOutcome
    ) -> FinishedReply:
        """What the client gets when `outcome.finished`.

        Raises:
            FlowError: the prefill's reply cannot be turned into it.
        """

    def release_leg(self, request_id: str) -> LegRequest | None:
        """Tells a prefill that no decode will pull; None: only the lease frees KV there."""

    def read_head(self, status: int, headers: Mapping[bytes, bytes]) -> EngineAnswer:
        """Classify a reply by its head; header names are in lower case. Never raises."""

    def read_hint(self, headers: Mapping[bytes, bytes]) -> Hint | None:
        """What a reply's head says of free slots; None when nothing. Never raises."""


@runtime_checkable
class ContinuingFlow(EngineFlow, Protocol):
    """An engine that can go on with an answer of which the client has a part.

    Events of its streams end with a line `id: ` and the ids, with commas between, of the tokens
    chosen since the event before; the gateway takes these lines out. Legs in the order
    `prefill_first`.
    """

    def continued(self, body: JsonMap, kv: JsonMap, sent: SentPart) -> JsonMap:
        """The client's body as legs that go on after what was sent are made of it.

        The answer must go on as it would have without a fault: same text, same usage, no second
        role. `body`: the client's, or one that this method made before. `kv`: of the first
        prefill's reply.

        Raises:
            FlowError: this request cannot be continued.
        """


@dataclass(frozen=True, slots=True)
class LocalAnswer:
    """What the head of a decode's answer says of a prompt that it computed itself; 0: nothing.

    `kv`: as of a prefill's reply, for `ContinuingFlow.continued`; None: the stream cannot go on.
    """

    prompt_tokens: int
    cached_tokens: int
    kv: JsonMap | None


@runtime_checkable
class LocalPrefillFlow(EngineFlow, Protocol):
    """An engine whose decode can compute a prompt by itself, in the steps of what runs there.

    Such a leg goes to a decode only and is answered like a decode leg. It may be refused for the
    reasons of any leg and for `wire.calls.REJECT_TPOT`. Legs otherwise in the order
    `prefill_first`.
    """

    def prepare_local(self, endpoint: Endpoint, body: JsonMap) -> bytes:
        """The leg's body; a stream must end with a chunk of the usage, as in `prepare_decode`."""

    def local_leg(self, attempt: LegAttempt, prepared: bytes, tpot: float | None) -> LegRequest:
        """The leg.

        `attempt`: its `prefill` is the decode too. `tpot`: seconds per token that answers which
        run there may take on average, for the engine to refuse otherwise; None: it need not.
        """

    def lacks_local(self, error: bytes) -> bool:
        """Whether the body of a client error says that this decode computes no prompts."""

    def read_local(self, headers: Mapping[bytes, bytes]) -> LocalAnswer:
        """What an accepted leg's reply says in its head. Never raises."""


def prefills_locally(flow: EngineFlow) -> LocalPrefillFlow | None:
    """The flow, where a decode of its engine can compute prompts."""
    return cast("LocalPrefillFlow", flow) if hasattr(flow, "local_leg") else None


def continuing(flow: EngineFlow) -> ContinuingFlow | None:
    """The flow, where its engine can go on with a stream."""
    # Asked for each stream: `isinstance` would look at every method.
    return cast("ContinuingFlow", flow) if hasattr(flow, "continued") else None


def token_count(value: object) -> int:
    """A count of tokens from an engine's `usage`: 0 to MAX_TOKENS; 0 where it is absent.

    Raises:
        ValueError: it is no such number.
    """
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_TOKENS:
        raise ValueError(f"a count of tokens is {shown(value)}")
    return value
