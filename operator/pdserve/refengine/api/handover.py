"""vLLM's `kv_transfer_params`: which leg a request is, and what travels from prefill to decode.

The object is opaque to gateways. Beside vLLM's fields it has one of ours, `pdserve`, with what a
decode needs so that the first token is computed once: the token, its logprobs, the seed of the
sampler and its position. A request whose stream was lost comes to a prefill again with a `replay`
in it, which travels on to the decode: the part of the answer that its client has.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from pdserve.http1.errors import ApiError
from pdserve.refengine.config import EngineRole
from pdserve.refengine.errors import field_error
from pdserve.refengine.kv.integrity import MAX_GENERATION
from pdserve.refengine.model.sampler import Sampled
from pdserve.refengine.runtime.request import GenerationRequest, RemoteKv, Replay
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.wire.calls import HEADER_LOCAL_PREFILL, PARAM_KV

_REPLAY = f"{PARAM_KV}.pdserve.replay"
MAX_REPLY_ID = 256
"""Characters of a reply's id."""


@dataclass(frozen=True, slots=True)
class RemoteLeg:
    """A decode leg as its body describes it."""

    kv: RemoteKv
    seed: int
    cached_tokens: int

    @property
    def tokens(self) -> int:
        """Length of the prompt in tokens."""
        return self.kv.tokens


@dataclass(frozen=True, slots=True)
class Held:
    """KV that a prefill holds: for how many seconds, and its generation (`kv.integrity`)."""

    lease: float
    generation: int


@dataclass(frozen=True, slots=True)
class Sender:
    """What a prefill says about itself in its replies."""

    engine: str
    host: str
    port: int


def wants_hand_over(body: JsonMap, role: EngineRole) -> bool:
    """Whether this is a prefill leg.

    Raises:
        ApiError: 400, an instance of this role does not take such a leg.
    """
    params = _params(body)
    asked = bool(params.get("do_remote_decode"))
    if role == "prefill" and not asked:
        raise ApiError(
            400,
            f"this instance only prefills; send {PARAM_KV} with do_remote_decode: true",
            param=PARAM_KV,
            code="wrong_role",
        )
    if asked and role != "prefill":
        raise ApiError(400, f"role {role} does not hand KV over", param=PARAM_KV, code="wrong_role")
    return asked


def remote_of(
    body: JsonMap, role: EngineRole, vocab: int, *, local: bool = False
) -> RemoteLeg | None:
    """The prefill's results on a decode leg, else None; its token ids are below `vocab`.

    `local`: the decode is asked to compute the prompt itself.

    Raises:
        ApiError: a field of them is wrong; the message names it.
    """
    params = _params(body)
    asked = bool(params.get("do_remote_prefill"))
    if local and asked:
        raise ApiError(
            400,
            f"{HEADER_LOCAL_PREFILL}: a prompt is computed here or pulled, not both",
            param=PARAM_KV,
            code="wrong_role",
        )
    if role == "decode" and not asked and not local:
        raise ApiError(
            400,
            f"this instance only decodes; send the {PARAM_KV} of a prefill's reply",
            param=PARAM_KV,
            code="wrong_role",
        )
    if not asked:
        return None
    if role != "decode":
        raise ApiError(400, f"role {role} does not pull KV", param=PARAM_KV, code="wrong_role")
    leg = _remote_leg(params)
    for token in (leg.kv.first.token, *(t for t, _ in leg.kv.first.top)):
        _check_token(f"{PARAM_KV}.pdserve.first_token_ids", token, vocab)
    return leg


def replay_of(body: JsonMap, remote: RemoteLeg | None, vocab: int) -> Replay | None:
    """What of the answer the client has already, on either leg of a stream that goes on.

    `remote`: the rest of a decode leg; token ids are below `vocab`.

    Raises:
        ApiError: 400, a field of it is wrong; the message names it.
    """
    ours = _params(body).get("pdserve")
    value = ours.get("replay") if isinstance(ours, dict) else None
    if value is None:
        return None
    if not isinstance(value, dict):
        raise field_error(_REPLAY, value, "an object is required")
    tokens, reply_id = value.get("token_ids"), value.get("reply_id")
    if not isinstance(tokens, list) or not tokens or set(map(type, tokens)) != {int}:
        raise field_error(f"{_REPLAY}.token_ids", tokens, "a non-empty list of token ids")
    if not isinstance(reply_id, str) or not 0 < len(reply_id) <= MAX_REPLY_ID:
        want = f"a string of 1 to {MAX_REPLY_ID} characters is required"
        raise field_error(f"{_REPLAY}.reply_id", reply_id, want)
    for token in tokens:
        _check_token(f"{_REPLAY}.token_ids", token, vocab)
    if remote is not None and len(tokens) >= remote.tokens:
        want = f"fewer tokens than remote_num_tokens = {remote.tokens}"
        raise field_error(f"{_REPLAY}.token_ids", len(tokens), want)
    created, cached = _whole(value, "created", _REPLAY, 0, 40), _whole(value, "cached", _REPLAY, 0)
    return Replay(tuple(tokens), reply_id, created, cached)


def replay_params(replay: Replay) -> JsonObject:
    """The object that `replay_of` reads."""
    return {
        "token_ids": list(replay.tokens),
        "reply_id": replay.reply_id,
        "created": replay.created,
        "cached": replay.cached,
    }


def reply_params(
    request: GenerationRequest, first: Sampled, cached: int, held: Held, sender: Sender
) -> JsonObject:
    """`kv_transfer_params` of a prefill's reply.

    `cached`: prompt tokens found in the prefix cache.
    """
    more = {"replay": replay_params(request.replay)} if request.replay else {}
    return {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_engine_id": sender.engine,
        "remote_request_id": request.id,
        "remote_host": sender.host,
        "remote_port": sender.port,
        "remote_block_ids": [],
        "remote_num_tokens": request.prompt_tokens,
        "remote_blocks_expiry_time": time.time() + held.lease,
        "pdserve": {
            "first_token_ids": [first.token],
            "first_logprob": first.logprob,
            "first_top_logprobs": [list(pair) for pair in first.top],
            "seed": request.sampling.seed,
            "position": request.prompt_tokens,
            "cached_tokens": cached,
            "generation": held.generation,
            **more,
        },
    }


def _params(body: JsonMap) -> JsonMap:
    value = body.get(PARAM_KV)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise field_error(PARAM_KV, value, "an object is required")
    return value


def _remote_leg(params: JsonMap) -> RemoteLeg:
    ours = params.get("pdserve")
    if not isinstance(ours, dict):
        raise field_error(f"{PARAM_KV}.pdserve", ours, "the object of the prefill's reply")
    tokens = _whole(params, "remote_num_tokens", PARAM_KV, 1)
    ids = ours.get("first_token_ids")
    if not isinstance(ids, list) or len(ids) != 1 or type(ids[0]) is not int or ids[0] < 0:
        raise field_error(f"{PARAM_KV}.pdserve.first_token_ids", ids, "one token id is required")
    position = _whole(ours, "position", f"{PARAM_KV}.pdserve", 1)
    if position != tokens:
        raise field_error(
            f"{PARAM_KV}.pdserve.position", position, f"must be remote_num_tokens = {tokens}"
        )
    seed = ours.get("seed")
    if type(seed) is not int:
        raise field_error(f"{PARAM_KV}.pdserve.seed", seed, "an integer is required")
    logprob = ours.get("first_logprob")
    top = ours.get("first_top_logprobs") or []
    try:
        first = Sampled(
            ids[0],
            None if logprob is None else float(logprob),
            tuple((int(token), float(value)) for token, value in top),
        )
    except (TypeError, ValueError) as error:
        raise field_error(f"{PARAM_KV}.pdserve", ours, "malformed logprobs") from error
    kv = RemoteKv(
        engine=_text(params, "remote_engine_id"),
        request=_text(params, "remote_request_id"),
        tokens=tokens,
        first=first,
        generation=_generation(ours),
    )
    return RemoteLeg(kv, seed, _whole(ours, "cached_tokens", f"{PARAM_KV}.pdserve", 0))


def _generation(ours: JsonMap) -> int:
    """0 where the prefill, of an older version, does not say."""
    number = ours.get("generation", 0)
    if type(number) is not int or not 0 <= number <= MAX_GENERATION:
        raise field_error(
            f"{PARAM_KV}.pdserve.generation", number, f"an integer from 0 to {MAX_GENERATION}"
        )
    return number


def _check_token(path: str, token: int, vocab: int) -> None:
    if not 0 <= token < vocab:
        raise field_error(path, token, f"token ids are 0 to {vocab - 1}")


def _whole(value: JsonMap, name: str, path: str, low: int, bits: int = 31) -> int:
    number = value.get(name)
    if type(number) is not int or not low <= number < 1 << bits:
        raise field_error(f"{path}.{name}", number, f"an integer >= {low} is required")
    return number


def _text(params: JsonMap, name: str) -> str:
    value = params.get(name)
    if not isinstance(value, str) or not value:
        raise field_error(f"{PARAM_KV}.{name}", value, "a non-empty string is required")
    return value
