"""Requests of the Reference engine: vLLM's P/D contract under pdserve's own headers.

A lost stream goes on: the prefill gets the tokens that the client has with the prompt, as a
`replay` inside `kv_transfer_params`, and hands it on to the decode. Positions, and so the random
numbers of the sampler, are those of an undisturbed run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pdserve.engines.flow import (
    Endpoint,
    FlowError,
    LegAttempt,
    LegRequest,
    PrefillOutcome,
    SentPart,
)
from pdserve.engines.local_flow import LocalPullFlow
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.wire.calls import HEADER_EVENT_IDS, PARAM_KV

_TOKEN_IDS = (HEADER_EVENT_IDS.encode(), b"1")


class _Continued(dict[str, Any]):
    """A client's body with what the client has; no field of a body can say so."""

    replay: JsonObject


class ReferenceFlow(LocalPullFlow):
    """`ContinuingFlow` and `LocalPrefillFlow` of the Reference engine."""

    def continued(self, body: JsonMap, kv: JsonMap, sent: SentPart) -> JsonObject:
        """See `ContinuingFlow.continued`.

        Raises:
            FlowError: the prefill did not say what the answer depends on.
        """
        ours = kv.get("pdserve")
        if not isinstance(ours, dict) or "seed" not in ours or "cached_tokens" not in ours:
            raise FlowError("the prefill's reply has no seed")
        made = _Continued(body)
        made["seed"] = ours["seed"]
        made.replay = {
            "token_ids": list(sent.tokens),
            "reply_id": sent.reply_id,
            "created": sent.created,
            "cached": ours["cached_tokens"],
        }
        return made

    def _prefill_body(self, endpoint: Endpoint, body: JsonMap) -> JsonObject:
        """As of any pull flow; what the client has goes with it."""
        leg = super()._prefill_body(endpoint, body)
        if isinstance(body, _Continued):
            leg[PARAM_KV] = {**leg[PARAM_KV], "pdserve": {"replay": body.replay}}
            leg |= {name: body[name] for name in ("min_tokens", "stop") if name in body}
        return leg

    def read_prefill(self, body: JsonMap, reply: bytes) -> PrefillOutcome:
        """See `EngineFlow.read_prefill`.

        Raises:
            FlowError: the reply is off contract, or of a version that replays nothing: the client
                would get its answer twice.
        """
        outcome = super().read_prefill(body, reply)
        if isinstance(body, _Continued) and outcome.reply.get("id") != body.replay["reply_id"]:
            raise FlowError("prefill reply: it does not go on with the stream")
        return outcome

    def decode_leg(self, attempt: LegAttempt, prepared: bytes) -> LegRequest:
        """The body as it was prepared; a stream names its tokens where that is asked for."""
        leg = super().decode_leg(attempt, prepared)
        return replace(leg, headers=(*leg.headers, _TOKEN_IDS)) if attempt.token_ids else leg

    def _sent(self, body: JsonMap) -> int:
        return len(body.replay["token_ids"]) if isinstance(body, _Continued) else 0


FLOW = ReferenceFlow()
