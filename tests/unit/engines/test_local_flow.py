"""Legs of decodes that compute a prompt: what is sent, and what heads of replies mean."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from pdserve.engines import registry
from pdserve.engines.flow import LegAttempt, LocalAnswer, prefills_locally
from pdserve.wire.routes import RouteInstance

DECODE = RouteInstance("d", "decode", "http://d", 4)
PROMPT, CACHED = b"x-pdserve-prompt-tokens", b"x-pdserve-cached-tokens"
SEED = b"x-pdserve-seed"


def flow() -> Any:
    found = prefills_locally(registry.flow("Reference"))
    assert found is not None
    return found


def attempt(**more: Any) -> LegAttempt:
    given = {"endpoint": "completions", "request_id": "r-local", "number": 1, "deadline_ms": 700}
    rest = {"passed_on": ((b"traceparent", b"t"),), "early_head": False}
    return LegAttempt(prefill=DECODE, decode=DECODE, **{**given, **rest, **more})


def test_which_types_have_such_legs() -> None:
    able = {name for name in registry.known() if prefills_locally(registry.flow(name))}
    assert able == {"Reference", "vLLM"}


def test_the_leg_is_the_clients_request_with_a_mark() -> None:
    body = {"model": "m", "prompt": "x", "stream": True, "stream_options": {"x": 1}}
    leg = flow().local_leg(attempt(token_ids=True), flow().prepare_local("chat", body), 0.0255)
    sent = orjson.loads(leg.body)
    assert sent == {**body, "stream_options": {"x": 1, "include_usage": True}}
    assert dict(leg.headers) == {
        b"x-request-id": b"r-local", b"traceparent": b"t", b"x-pdserve-deadline-ms": b"700",
        b"x-pdserve-event-ids": b"1", b"x-pdserve-local-prefill": b"1", b"x-pdserve-tpot-ms": b"25",
    }  # fmt: skip
    assert "stream_options" in body and body["stream_options"] == {"x": 1}, "the client's own"
    plain = flow().local_leg(attempt(), b"{}", None)
    assert b"x-pdserve-tpot-ms" not in dict(plain.headers)
    least = flow().local_leg(attempt(), b"{}", 0.0001)
    assert dict(least.headers)[b"x-pdserve-tpot-ms"] == b"1"


def test_a_whole_reply_is_asked_for_without_usage_options() -> None:
    assert orjson.loads(flow().prepare_local("completions", {"prompt": "x"})) == {"prompt": "x"}


@pytest.mark.parametrize(
    ("headers", "want"),
    [
        ({}, LocalAnswer(0, 0, None)),
        ({PROMPT: b"40", CACHED: b"16"}, LocalAnswer(40, 16, None)),
        ({PROMPT: b"40", CACHED: b"41"}, LocalAnswer(40, 40, None)),
        ({CACHED: b"16"}, LocalAnswer(0, 0, None)),
        ({PROMPT: b"-1", CACHED: b"-7"}, LocalAnswer(0, 0, None)),
        ({PROMPT: b"1e3"}, LocalAnswer(0, 0, None)),
        ({PROMPT: b"\xff" * 9}, LocalAnswer(0, 0, None)),
        ({PROMPT: b"9" * 39}, LocalAnswer(0, 0, None)),
        ({PROMPT: b"9" * 100_000}, LocalAnswer(0, 0, None)),
        ({SEED: b"seven"}, LocalAnswer(0, 0, None)),
        ({SEED: b"9" * 5000}, LocalAnswer(0, 0, None)),
        ({SEED: b"18446744073709551616"}, LocalAnswer(0, 0, None)),
        ({SEED: b"-9223372036854775809"}, LocalAnswer(0, 0, None)),
        ({SEED: b"-3"}, LocalAnswer(0, 0, {"pdserve": {"seed": -3, "cached_tokens": 0}})),
        (
            {SEED: b"18446744073709551615", PROMPT: b"9", CACHED: b"8"},
            LocalAnswer(9, 8, {"pdserve": {"seed": 2**64 - 1, "cached_tokens": 8}}),
        ),
    ],
)
def test_the_head_of_an_answer(headers: dict[bytes, bytes], want: LocalAnswer) -> None:
    assert flow().read_local(headers) == want


@pytest.mark.parametrize(
    ("error", "want"),
    [
        (b'{"error":{"code":"wrong_role"}}', True),
        (b'{"error":{"code":"bad_request"}}', False),
        (b'{"error":{"message":"wrong_role"}}', False),
        (b'{"error":"wrong_role"}', False),
        (b'["wrong_role"]', False),
        (b"wrong_role", False),
        (b"", False),
        (b"[" * 500 + b"]" * 500, False),
        (b'{"error":{"code":"wrong_role","message":"' + b"x" * 70_000 + b'"}}', False),
    ],
)
def test_a_decode_of_before_says_so(error: bytes, want: bool) -> None:
    assert flow().lacks_local(error) is want
