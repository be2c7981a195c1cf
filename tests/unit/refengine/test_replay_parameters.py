"""A prefill or decode that goes on with a stream: what is wrong with its `replay` is said."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from pdserve.http1.errors import ApiError
from pdserve.refengine.api import openai
from pdserve.refengine.model.loader import LoadedModel
from pdserve.wire.calls import PARAM_KV

GOOD: dict[str, Any] = {"token_ids": [9, 10], "reply_id": "cmpl-7", "created": 1, "cached": 0}
PATH = f"{PARAM_KV}.pdserve.replay"
CASES: dict[str, tuple[Any, str, str]] = {
    "not an object": ([1], PATH, "an object"),
    "tokens missing": (GOOD | {"token_ids": None}, f"{PATH}.token_ids", "a non-empty list"),
    "no tokens": (GOOD | {"token_ids": []}, f"{PATH}.token_ids", "a non-empty list"),
    "a token of text": (GOOD | {"token_ids": ["9"]}, f"{PATH}.token_ids", "a non-empty list"),
    "a boolean token": (GOOD | {"token_ids": [True]}, f"{PATH}.token_ids", "a non-empty list"),
    "a token below": (GOOD | {"token_ids": [9, -1]}, f"{PATH}.token_ids", "0 to 2047"),
    "a token above": (GOOD | {"token_ids": [2048]}, f"{PATH}.token_ids", "0 to 2047"),
    "no id": (GOOD | {"reply_id": ""}, f"{PATH}.reply_id", "1 to 256 characters"),
    "a long id": (GOOD | {"reply_id": "x" * 257}, f"{PATH}.reply_id", "1 to 256 characters"),
    "created before 1970": (GOOD | {"created": -1}, f"{PATH}.created", "an integer >= 0"),
    "created far ahead": (GOOD | {"created": 1 << 40}, f"{PATH}.created", "an integer >= 0"),
    "cached a fraction": (GOOD | {"cached": 0.5}, f"{PATH}.cached", "an integer >= 0"),
}


def read(role: Any, params: Any, model: LoadedModel, **more: Any) -> openai.RequestDraft:
    limits = openai.RequestLimits(role, "reference", 2048, 1 << 20)
    body = {"model": "reference", "prompt": [5, 6], "max_tokens": 30, PARAM_KV: params, **more}
    return openai.read("completion", orjson.dumps(body), model, limits)


@pytest.mark.parametrize("case", CASES)
def test_refused_on_both_legs(case: str, model: LoadedModel) -> None:
    replay, param, message = CASES[case]
    for role, params in (("prefill", prefill_params()), ("decode", decode_params(4))):
        params["pdserve"]["replay"] = replay
        with pytest.raises(ApiError, match=message) as raised:
            read(role, params, model)
        assert (raised.value.status, raised.value.param) == (400, param)


def test_a_replay_longer_than_the_pulled_prompt_is_refused(model: LoadedModel) -> None:
    params = decode_params(2)
    params["pdserve"]["replay"] = GOOD
    with pytest.raises(ApiError, match="fewer tokens than remote_num_tokens = 2"):
        read("decode", params, model)


def test_a_replay_that_fills_the_context_is_refused(model: LoadedModel) -> None:
    params = prefill_params()
    params["pdserve"]["replay"] = GOOD | {"token_ids": [9] * 2046}
    draft = read("prefill", params, model)
    with pytest.raises(ApiError, match="the prompt has 2048 tokens"):
        draft.request("r", None, draft.tokenise())


def test_both_legs_count_what_was_sent(model: LoadedModel) -> None:
    params, remote = prefill_params(), decode_params(4)
    params["pdserve"]["replay"] = remote["pdserve"]["replay"] = GOOD
    draft = read("prefill", params, model, min_tokens=20)
    prefill = draft.request("r", None, draft.tokenise())
    assert prefill.prompt == (5, 6, 9, 10)
    assert (prefill.max_tokens, prefill.min_tokens, prefill.client_prompt_tokens) == (3, 20, 2)
    decode = read("decode", remote, model).request("r", None, [])
    assert (decode.prompt, decode.prompt_tokens, decode.client_prompt_tokens) == ((), 4, 2)
    assert (decode.max_tokens, decode.replayed) == (30, (9, 10))


def test_an_aggregated_instance_replays_nothing(model: LoadedModel) -> None:
    draft = read("both", {"pdserve": {"replay": GOOD}}, model)
    assert draft.request("r", None, draft.tokenise()).replay is None


def prefill_params() -> dict[str, Any]:
    return {"do_remote_decode": True, "do_remote_prefill": False, "pdserve": {}}


def decode_params(tokens: int) -> dict[str, Any]:
    return {
        "do_remote_prefill": True, "remote_engine_id": "p", "remote_request_id": "r",
        "remote_num_tokens": tokens,
        "pdserve": {"first_token_ids": [9], "seed": 1, "position": tokens, "cached_tokens": 0},
    }  # fmt: skip
