"""The pull flow's bodies, as vLLM's P/D contract wants them."""

import json
from typing import Any

import orjson
import pytest

from pdserve.engines.flow import FlowError
from pdserve.engines.pull_flow import PullFlow

FLOW = PullFlow()
CHAT: dict[str, Any] = {
    "model": "m", "messages": [{"role": "user", "content": "x"}], "max_completion_tokens": 50,
    "stream": True, "stream_options": {"include_usage": True, "other": 1}, "min_tokens": 5,
    "seed": 7, "stop": ["a"], "kv_transfer_params": {"do_remote_prefill": "forged"},
}  # fmt: skip
KV = {"do_remote_prefill": True, "remote_request_id": "r-1", "anything": [1, {"x": None}]}


def reply(**fields: Any) -> bytes:
    choice = {"index": 0, "text": "t0", "finish_reason": "length", "logprobs": None}
    value = {
        "id": "c", "created": 3, "model": "m", "choices": [choice],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1,
                  "prompt_tokens_details": {"cached_tokens": 4}},
        "kv_transfer_params": KV,
    }  # fmt: skip
    return orjson.dumps(value | fields)


def test_prefill_body_is_capped_under_both_names_and_not_streamed() -> None:
    leg = orjson.loads(FLOW.prepare_prefill("chat", CHAT))
    assert (leg["max_tokens"], leg["max_completion_tokens"], leg["min_tokens"]) == (1, 1, 1)
    assert leg["stream"] is False
    assert "stream_options" not in leg
    assert leg["kv_transfer_params"]["do_remote_decode"] is True
    assert leg["kv_transfer_params"]["do_remote_prefill"] is False
    assert leg["seed"] == 7
    plain = orjson.loads(FLOW.prepare_prefill("completions", {"model": "m", "prompt": "x"}))
    assert "max_completion_tokens" not in plain


@pytest.mark.parametrize(("least", "stops"), [(None, True), (0, True), (1, True), (2, False)])
def test_a_prefill_ends_no_answer_before_its_least_tokens(least: int | None, stops: bool) -> None:
    """A word that ends it may be in token 1 already; the decode has it in any case."""
    body = {name: value for name, value in CHAT.items() if name != "min_tokens"}
    body |= {} if least is None else {"min_tokens": least}
    leg = orjson.loads(FLOW.prepare_prefill("chat", body))
    assert leg.get("stop") == (["a"] if stops else None)
    outcome = FLOW.read_prefill(body, reply())
    assert orjson.loads(FLOW.prepare_decode("chat", body, outcome))["stop"] == ["a"]


def test_decode_body_is_the_client_s_with_the_prefill_s_parameters_unchanged() -> None:
    outcome = FLOW.read_prefill(CHAT, reply())
    leg = orjson.loads(FLOW.prepare_decode("chat", CHAT, outcome))
    assert leg["kv_transfer_params"] == KV
    assert leg["stream_options"] == {"include_usage": True, "other": 1}
    assert leg["max_completion_tokens"] == 50
    whole = orjson.loads(FLOW.prepare_decode("chat", {"model": "m", "prompt": "x"}, outcome))
    assert "stream_options" not in whole


def test_prefill_reply() -> None:
    outcome = FLOW.read_prefill(CHAT, reply())
    assert not outcome.finished
    assert (outcome.release_id, outcome.prompt_tokens, outcome.cached_tokens) == ("r-1", 9, 4)


@pytest.mark.parametrize(
    ("count", "cached"),
    [(8, 8), (0, 0), (None, 0), (10, 0), (-1, 0), (True, 0), (3.0, 0), ([3], 0), (1 << 70, 0)],
)
def test_cached_tokens_of_a_reply_whose_usage_does_not_say(count: object, cached: int) -> None:
    kv = KV | {"remote_prefill_cached_tokens": count}
    silent: list[dict[str, Any]] = [{}, {"prompt_tokens_details": None}]
    for details in (*silent, {"prompt_tokens_details": {}}):
        usage = {"prompt_tokens": 9, "completion_tokens": 1} | details
        body = b"%b" % reply(usage=usage, kv_transfer_params=None)
        body = body.replace(b'"kv_transfer_params":null', b'"kv_transfer_params":' + _json(kv))
        assert FLOW.read_prefill(CHAT, body).cached_tokens == cached
    assert FLOW.read_prefill(CHAT, reply(kv_transfer_params=KV)).cached_tokens == 4


def _json(value: object) -> bytes:
    """As `json` writes it: orjson has no integers of 70 bits."""
    return json.dumps(value).encode()


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_one_wanted_token_finishes_at_prefill(name: str) -> None:
    outcome = FLOW.read_prefill({"model": "m", "prompt": "x", name: 1}, reply())
    assert outcome.finished
    assert outcome.kv == KV, "held, so it has to be released"


def test_stop_at_token_one_finishes_without_kv() -> None:
    stopped = {"index": 0, "text": "t0", "finish_reason": "stop"}
    outcome = FLOW.read_prefill(CHAT, reply(choices=[stopped], kv_transfer_params=None))
    assert (outcome.finished, outcome.kv, outcome.release_id) == (True, None, None)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "JSON"),
        (b"[]", "TypeError"),
        (reply(choices=[]), "IndexError"),
        (reply(kv_transfer_params=None), "no kv_transfer_params, and the request is not finished"),
        (reply(kv_transfer_params=[1]), "wrong type"),
        (reply(usage={"prompt_tokens": "many"}), "ValueError"),
    ],
)
def test_a_reply_off_contract_is_an_error(body: bytes, says: str) -> None:
    with pytest.raises(FlowError, match=says):
        FLOW.read_prefill({"model": "m"}, body)


@pytest.mark.parametrize(
    "name",
    ["", "a b", "\x00", "r\r\nx: y\r\n\r\nPOST /pdserve/v1/drain", "r\n", "é", "r" * 257, 5, []],
)
def test_an_id_that_would_not_stay_one_header_is_off_contract(name: object) -> None:
    """The decode leg carries it as a header: an instance must not write the gateway's requests."""
    with pytest.raises(FlowError, match="remote_request_id"):
        FLOW.read_prefill({"model": "m"}, reply(kv_transfer_params={"remote_request_id": name}))


def test_finished_reply_in_the_client_s_form() -> None:
    outcome = FLOW.read_prefill({"max_tokens": 1}, reply())
    whole = FLOW.finished_reply("completions", {"max_tokens": 1}, outcome)
    assert whole.content_type == "application/json"
    assert "kv_transfer_params" not in orjson.loads(whole.body)
    asked = {"max_tokens": 1, "stream": True, "stream_options": {"include_usage": True}}
    stream = FLOW.finished_reply("completions", asked, outcome)
    events = [e[6:] for e in stream.body.split(b"\n\n")[:-1]]
    assert events[-1] == b"[DONE]"
    assert orjson.loads(events[0])["choices"][0]["text"] == "t0"
    assert orjson.loads(events[1])["usage"]["completion_tokens"] == 1
