"""Flow of engines whose decode pulls the KV: vLLM's P/D bodies under OpenAI's paths.

Prefill answers with `kv_transfer_params` (opaque here), decode gets the client's body plus that
object unchanged and delivers every token, the first included. Facts of the bodies: vLLM 0.32
NixlConnector. Headers are pdserve's own (`wire.calls`). An engine with other names makes a
`PullFlow` with its own `FlowNames`; one with other bodies derives from it. Neighbours: `flow` (the
protocol); where it stops: no I/O, no time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from reprlib import repr as shown
from typing import Literal

import orjson

from pdserve.engines.flow import (
    Endpoint,
    EngineAnswer,
    FinishedReply,
    FlowError,
    HeaderLines,
    LegAttempt,
    LegRequest,
    PrefillOutcome,
    token_count,
)
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.wire import calls
from pdserve.wire.bounds import parse_json
from pdserve.wire.calls import PARAM_KV
from pdserve.wire.hints import Hint, parse_hint

CLIENT_ERRORS = frozenset({400, 413, 422})

MAX_REPLY = 64 << 20
"""Bytes of a prefill's reply; logprobs of a long prompt are large."""
_ACCEPTED = EngineAnswer("accepted")
_ID = re.compile(r"[!-~]{1,256}")
_KEEP_KV: JsonObject = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


@dataclass(frozen=True, slots=True)
class FlowNames:
    """Paths and headers of one engine type, headers in lower case."""

    completions: str = calls.PATH_COMPLETIONS
    chat: str = calls.PATH_CHAT
    release: str = calls.PATH_RELEASE
    request_id: bytes = calls.HEADER_REQUEST_ID.encode()
    deadline_ms: bytes = calls.HEADER_DEADLINE_MS.encode()
    early_head: bytes = calls.HEADER_EARLY_HEAD.encode()
    reject: bytes = calls.HEADER_REJECT.encode()
    slots: bytes = calls.HEADER_SLOTS.encode()
    free_in_ms: bytes = calls.HEADER_FREE_IN_MS.encode()
    epoch: bytes = calls.HEADER_EPOCH.encode()


@dataclass(frozen=True)
class PullFlow:
    """`EngineFlow` in which a decode pulls the KV that a prefill holds."""

    names: FlowNames = field(default_factory=FlowNames)
    lease_seconds: float = 30.0
    first_token: Literal["prefill", "decode"] = "prefill"  # noqa: S105 (a model token)
    order: Literal["prefill_first", "together"] = "prefill_first"

    def prepare_prefill(self, endpoint: Endpoint, body: JsonMap) -> bytes:
        """Client body, capped to one token under both names, without streaming.

        And without what ends an answer at a token where the client's may not end yet.
        """
        return orjson.dumps(self._prefill_body(endpoint, body))

    def _prefill_body(self, endpoint: Endpoint, body: JsonMap) -> JsonObject:
        leg = dict(body)
        leg.pop("stream_options", None)
        leg["stream"] = False
        leg["max_tokens"] = 1
        if endpoint == "chat" or "max_completion_tokens" in leg:
            leg["max_completion_tokens"] = 1
        if "min_tokens" in leg:
            if leg["min_tokens"] > 1:
                leg.pop("stop", None)  # token 1 does not end the answer, whatever it says
            leg["min_tokens"] = min(1, int(leg["min_tokens"]))
        leg[PARAM_KV] = _KEEP_KV
        return leg

    def prefill_leg(self, attempt: LegAttempt, prepared: bytes) -> LegRequest:
        """The body as it was prepared."""
        return LegRequest(self._path(attempt), prepared, self._headers(attempt))

    def read_prefill(self, body: JsonMap, reply: bytes) -> PrefillOutcome:
        """See `EngineFlow.read_prefill`.

        Raises:
            FlowError: the reply cannot be read, or leaves a request without the KV that it needs.
        """
        try:
            value = parse_json(reply, max_bytes=MAX_REPLY)
            choice = value["choices"][0]
            usage = value.get("usage") or {}
            kv = value.get(PARAM_KV)
            ended = choice.get("finish_reason") not in (None, "length")
            prompt_tokens = token_count(usage.get("prompt_tokens"))
            cached_tokens = _cached_tokens(usage, kv, prompt_tokens)
            release_id = None if kv is None else kv.get("remote_request_id")
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise FlowError(f"prefill reply: {type(error).__name__}: {error}") from error
        except AttributeError as error:
            raise FlowError(f"prefill reply: a value has the wrong type: {error}") from error
        if release_id is not None and not _is_id(release_id):
            raise FlowError(f"prefill reply: remote_request_id is {shown(release_id)}, no id")
        finished = ended or token_limit(body) == self._sent(body) + 1
        if kv is None and not finished:
            raise FlowError(f"prefill reply: no {PARAM_KV}, and the request is not finished")
        return PrefillOutcome(finished, kv, release_id, prompt_tokens, cached_tokens, value)

    def prepare_decode(
        self, endpoint: Endpoint, body: JsonMap, outcome: PrefillOutcome | None
    ) -> bytes:
        """Client body plus the prefill's parameters; asks for usage when streaming.

        Raises:
            FlowError: the prefill has not answered.
        """
        if outcome is None:
            raise FlowError("a decode has nothing to pull before its prefill answered")
        leg = dict(body)
        if leg.get("stream"):
            leg["stream_options"] = {**(leg.get("stream_options") or {}), "include_usage": True}
        leg[PARAM_KV] = outcome.kv
        return orjson.dumps(leg)

    def decode_leg(self, attempt: LegAttempt, prepared: bytes) -> LegRequest:
        """The body as it was prepared."""
        return LegRequest(self._path(attempt), prepared, self._headers(attempt))

    def finished_reply(
        self, endpoint: Endpoint, body: JsonMap, outcome: PrefillOutcome
    ) -> FinishedReply:
        """The prefill's own completion, without its P/D parameters, in the client's form.

        Raises:
            FlowError: the reply of the prefill cannot be read.
        """
        value = {k: v for k, v in outcome.reply.items() if k != PARAM_KV}
        try:
            tokens = token_count((value.get("usage") or {}).get("completion_tokens")) or 1
            if not body.get("stream"):
                return FinishedReply(orjson.dumps(value), "application/json", tokens)
            options = body.get("stream_options") or {}
            usage = bool(options.get("include_usage"))
            chunks = _chunks(endpoint, value, usage=usage, first=not self._sent(body))
            stream = b"".join(b"data: " + orjson.dumps(c) + b"\n\n" for c in chunks)
        except (AttributeError, TypeError, ValueError) as error:
            raise FlowError(f"prefill reply: {type(error).__name__}: {error}") from error
        return FinishedReply(stream + b"data: [DONE]\n\n", "text/event-stream", tokens)

    def release_leg(self, request_id: str) -> LegRequest | None:
        """`{"request_id": ...}`."""
        return LegRequest(self.names.release, orjson.dumps({"request_id": request_id}))

    def read_head(self, status: int, headers: Mapping[bytes, bytes]) -> EngineAnswer:
        """Classify a reply's head.

        503 and 429 are refusals, from an engine or from a proxy before it. `CLIENT_ERRORS` are the
        client's own mistakes, found by the engine. Whatever else is no 200 (redirects, missing
        paths and credentials too) is a fault of the service.
        """
        if status == 200:
            return _ACCEPTED
        reason = headers.get(self.names.reject, b"").decode("latin-1")
        if reason in (calls.REJECT_KV_FAILED, calls.REJECT_KV_CORRUPT):
            return EngineAnswer("kv_failed", reason)
        if status in (503, 429):
            return EngineAnswer("refused", reason or "status")
        if status in CLIENT_ERRORS:
            return EngineAnswer("client_error")
        return EngineAnswer("failed", "status")

    def read_hint(self, headers: Mapping[bytes, bytes]) -> Hint | None:
        """Slots, milliseconds until one is free, and an epoch."""
        names = self.names
        slots = headers.get(names.slots)
        if slots is None:
            return None
        return parse_hint(
            slots,
            headers.get(names.free_in_ms, b"0"),
            headers.get(names.epoch, b"0"),
        )

    def _sent(self, body: JsonMap) -> int:
        """Output tokens that the client has already."""
        return 0

    def _path(self, attempt: LegAttempt) -> str:
        return self.names.chat if attempt.endpoint == "chat" else self.names.completions

    def _headers(self, attempt: LegAttempt) -> HeaderLines:
        names = self.names
        lines = [(names.request_id, attempt.request_id.encode()), *attempt.passed_on]
        if attempt.deadline_ms is not None:
            lines.append((names.deadline_ms, b"%d" % attempt.deadline_ms))
        if attempt.early_head:
            lines.append((names.early_head, b"1"))
        return tuple(lines)


def _is_id(value: object) -> bool:
    """It is sent on as a header: with a line end in it, it would be a request of its own."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def token_limit(body: JsonMap) -> int | None:
    """The client's cap on output tokens, under either name; None when it set none."""
    limit = body.get("max_completion_tokens")
    return limit if limit is not None else body.get("max_tokens")


def _cached_tokens(usage: JsonMap, kv: JsonMap | None, prompt_tokens: int) -> int:
    """Prompt tokens that a prefill found in its cache, by its usage, else by its P/D parameters.

    vLLM leaves the first out unless an option asks for it. The parameters are the engine's own
    business, so that a value there which is no such count is taken for none.
    """
    found = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    if found is not None or kv is None:
        return token_count(found)
    count = kv.get("remote_prefill_cached_tokens")
    return count if type(count) is int and 0 <= count <= prompt_tokens else 0


def _chunks(endpoint: Endpoint, value: JsonMap, *, usage: bool, first: bool) -> list[JsonObject]:
    """The SSE chunks that say the same as one non-streamed reply; `first`: none went before."""
    head = {k: value[k] for k in ("id", "created", "model") if k in value}
    choice = value["choices"][0]
    if endpoint == "chat":
        head["object"] = "chat.completion.chunk"
        message = choice.get("message") or {}
        role = {"role": message.get("role", "assistant")} if first else {}
        delta = {**role, "content": message.get("content") or ""}
        text = {"index": 0, "delta": delta, "finish_reason": None}
        if choice.get("logprobs") is not None:
            text["logprobs"] = choice["logprobs"]
        last = {"index": 0, "delta": {}, "finish_reason": choice.get("finish_reason")}
        choices = [[text], [last]]
    else:
        head["object"] = "text_completion"
        choices = [[choice]]
    chunks = [{**head, "choices": c} | ({"usage": None} if usage else {}) for c in choices]
    if usage:
        chunks.append({**head, "choices": [], "usage": value.get("usage")})
    return chunks
