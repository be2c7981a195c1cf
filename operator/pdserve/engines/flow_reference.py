"""Request flow of the Reference engine: vLLM's P/D contract, token 1 sampled by prefill.

Sequential: prefill answers with `kv_transfer_params` (opaque here), decode gets the client's body
plus that object unchanged and delivers every token, the first included. Facts of the contract:
vLLM 0.32 NixlConnector. Neighbours: `flow` (the protocol); where it stops: no I/O, no time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from reprlib import repr as shown
from typing import Any, Literal

import orjson

from pdserve.engines.flow import Endpoint, FinishedReply, FlowError, PrefillOutcome, token_count
from pdserve.wire.bounds import parse_json
from pdserve.wire.http import PARAM_KV

MAX_REPLY = 64 << 20
"""Bytes of a prefill's reply; logprobs of a long prompt are large."""
_ID = re.compile(r"[!-~]{1,256}")
_KEEP_KV: dict[str, Any] = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


class ReferenceFlow:
    """`EngineFlow` of the Reference engine."""

    first_token: Literal["prefill", "decode"] = "prefill"  # noqa: S105 (a model token)
    lease_seconds = 30.0

    def prefill_body(self, endpoint: Endpoint, body: Mapping[str, Any]) -> bytes:
        """Client body, capped to one token under both names, without streaming."""
        leg = dict(body)
        leg.pop("stream_options", None)
        leg["stream"] = False
        leg["max_tokens"] = 1
        if endpoint == "chat" or "max_completion_tokens" in leg:
            leg["max_completion_tokens"] = 1
        if "min_tokens" in leg:
            leg["min_tokens"] = min(1, int(leg["min_tokens"]))
        leg[PARAM_KV] = _KEEP_KV
        return orjson.dumps(leg)

    def read_prefill(self, body: Mapping[str, Any], reply: bytes) -> PrefillOutcome:
        """See `EngineFlow.read_prefill`."""
        try:
            value = parse_json(reply, max_bytes=MAX_REPLY)
            choice = value["choices"][0]
            usage = value.get("usage") or {}
            details = usage.get("prompt_tokens_details") or {}
            kv = value.get(PARAM_KV)
            ended = choice.get("finish_reason") not in (None, "length")
            prompt_tokens = token_count(usage.get("prompt_tokens"))
            cached_tokens = token_count(details.get("cached_tokens"))
            release_id = None if kv is None else kv.get("remote_request_id")
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise FlowError(f"prefill reply: {type(error).__name__}: {error}") from error
        except AttributeError as error:
            raise FlowError(f"prefill reply: a value has the wrong type: {error}") from error
        if release_id is not None and not _is_id(release_id):
            raise FlowError(f"prefill reply: remote_request_id is {shown(release_id)}, no id")
        finished = ended or token_limit(body) == 1
        if kv is None and not finished:
            raise FlowError(f"prefill reply: no {PARAM_KV}, and the request is not finished")
        return PrefillOutcome(finished, kv, release_id, prompt_tokens, cached_tokens, value)

    def decode_body(self, body: Mapping[str, Any], outcome: PrefillOutcome) -> bytes:
        """Client body plus the prefill's parameters; asks for usage when streaming."""
        leg = dict(body)
        if leg.get("stream"):
            leg["stream_options"] = {**(leg.get("stream_options") or {}), "include_usage": True}
        leg[PARAM_KV] = outcome.kv
        return orjson.dumps(leg)

    def finished_reply(
        self, endpoint: Endpoint, body: Mapping[str, Any], outcome: PrefillOutcome
    ) -> FinishedReply:
        """The prefill's own completion, without its P/D parameters, in the client's form."""
        value = {k: v for k, v in outcome.reply.items() if k != PARAM_KV}
        try:
            tokens = token_count((value.get("usage") or {}).get("completion_tokens")) or 1
            if not body.get("stream"):
                return FinishedReply(orjson.dumps(value), "application/json", tokens)
            options = body.get("stream_options") or {}
            chunks = _chunks(endpoint, value, bool(options.get("include_usage")))
            stream = b"".join(b"data: " + orjson.dumps(c) + b"\n\n" for c in chunks)
        except (AttributeError, TypeError, ValueError) as error:
            raise FlowError(f"prefill reply: {type(error).__name__}: {error}") from error
        return FinishedReply(stream + b"data: [DONE]\n\n", "text/event-stream", tokens)


def _is_id(value: object) -> bool:
    """It is sent on as a header: with a line end in it, it would be a request of its own."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def token_limit(body: Mapping[str, Any]) -> int | None:
    """The client's cap on output tokens, under either name; None when it set none."""
    limit = body.get("max_completion_tokens")
    return limit if limit is not None else body.get("max_tokens")


def _chunks(endpoint: Endpoint, value: Mapping[str, Any], usage: bool) -> list[dict[str, Any]]:
    """The SSE chunks that say the same as one non-streamed reply."""
    head = {k: value[k] for k in ("id", "created", "model") if k in value}
    choice = value["choices"][0]
    if endpoint == "chat":
        head["object"] = "chat.completion.chunk"
        message = choice.get("message") or {}
        delta = {"role": message.get("role", "assistant"), "content": message.get("content") or ""}
        first = {"index": 0, "delta": delta, "finish_reason": None}
        if choice.get("logprobs") is not None:
            first["logprobs"] = choice["logprobs"]
        last = {"index": 0, "delta": {}, "finish_reason": choice.get("finish_reason")}
        choices = [[first], [last]]
    else:
        head["object"] = "text_completion"
        choices = [[choice]]
    chunks = [{**head, "choices": c} for c in choices]
    if usage:
        chunks.append({**head, "choices": [], "usage": value.get("usage")})
    return chunks
