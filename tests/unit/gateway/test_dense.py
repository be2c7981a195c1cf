"""Large bodies are read without holding the event loop."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any

import orjson
import pytest

from pdserve.engines.flow import SentPart
from pdserve.engines.pull_flow import PullFlow
from pdserve.engines.reference.flow import ReferenceFlow
from pdserve.gateway import dense, intake
from pdserve.gateway.dense import PIECE, read_body
from pdserve.http1.errors import ApiError

MANY = 200_000


def body(prompt: str, rest: str = "") -> bytes:
    return f'{{"model": "m", "prompt": {prompt}{rest}}}'.encode()


def ids(count: int, comma: str = ",") -> str:
    return "[" + comma.join(str(n * 37 % 130_000) for n in range(count)) + "]"


@pytest.mark.parametrize(
    "raw",
    [
        body(ids(MANY)),
        body(ids(MANY, " ,\n\t"), ', "max_tokens": 5'),
        body("[" + ids(MANY) + "]"),
        body("[" + ",".join("1" * 1 for _ in range(2 * MANY)) + "]"),
        b'{"model": "m", "user": "a\\"[1,\\\\", "prompt": ' + ids(MANY).encode() + b"}",
    ],
)
async def test_a_long_list_of_ids_reaches_both_legs_as_it_is(raw: bytes) -> None:
    want = json.loads(raw)
    found = await read_body("completions", raw)
    prompt = want["prompt"]
    assert found.ids == len(prompt[0] if isinstance(prompt[0], list) else prompt)
    assert orjson.loads(orjson.dumps(found.fields)) == want
    leg = orjson.loads(PullFlow().prepare_prefill("completions", found.fields))
    assert leg["prompt"] == prompt


async def test_a_stream_that_goes_on_has_its_list_of_ids_as_it_came() -> None:
    """Parsing it again would hold the loop."""
    raw = ids(MANY, " ,\n\t")
    found = await read_body("completions", body(raw, ', "min_tokens": 7'))
    flow = ReferenceFlow()
    sent = SentPart((5, 6), "cmpl-1", 1)
    again = flow.continued(found.fields, {"pdserve": {"seed": 3, "cached_tokens": 0}}, sent)
    leg = flow.prepare_prefill("completions", again)
    assert raw.encode() in leg
    value = orjson.loads(leg)
    assert value["kv_transfer_params"]["pdserve"]["replay"]["token_ids"] == [5, 6]
    assert (value["min_tokens"], value["seed"], value["max_tokens"]) == (7, 3, 1)


@pytest.mark.interpreted
async def test_nothing_long_is_done_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call of the parser gets more than a piece, and the loop turns between any two."""
    calls: list[tuple[int, int]] = []
    turns = 0

    def noted(parse: Any) -> Any:
        def call(raw: bytes, *given: Any, **named: Any) -> Any:
            calls.append((len(raw), turns))
            return parse(raw, *given, **named)

        return call

    async def turning() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    class Spied:
        loads = staticmethod(noted(orjson.loads))
        Fragment = orjson.Fragment
        JSONDecodeError = orjson.JSONDecodeError

    monkeypatch.setattr(dense, "orjson", Spied)
    monkeypatch.setattr(intake, "parse_json", noted(intake.parse_json))
    other = asyncio.create_task(turning())
    raw = body("[" + "1," * ((4 << 20) // 2 - 40) + "1]")
    found = await read_body("completions", raw)
    other.cancel()
    assert found.ids > 2_000_000
    assert max(size for size, _ in calls) <= PIECE + 2
    at = [turn for _, turn in calls[1:]]
    assert len(at) >= len(raw) // PIECE
    assert all(a < b for a, b in pairwise(at))


@pytest.mark.parametrize(
    ("change", "want"),
    [
        (lambda text: text.replace(",148,", ",,", 1), "token id"),
        (lambda text: text.replace(",148,", ",01,", 1), "token id"),
        (lambda text: text.replace(",148,", f",{'9' * 30},", 1), "token id"),
        (lambda text: text.replace(",148,", ", ,", 1), "token id"),
        (lambda text: text[:-1] + ",]", "token id"),
        (lambda text: "[" + "1" * (3 * PIECE) + "]", "token id"),
        (lambda text: "[" + " " * (3 * PIECE) + "]", "token id"),
    ],
)
async def test_what_is_no_list_of_ids_is_refused(change: Any, want: str) -> None:
    with pytest.raises(ApiError, match=want) as refused:
        await read_body("completions", body(change(ids(MANY))))
    assert refused.value.status == 400
    assert refused.value.param == "prompt"


@pytest.mark.parametrize(
    "raw",
    [
        body('"x"', f', "stop_token_ids": {ids(MANY)}'),
        body('"x"', f', "other": {"[" + "[]," * MANY + "[]]"}'),
        body('"x"', f', "other": {"[" + "{}," * MANY + "{}]"}'),
        body('"x"', ', "o": {' + ",".join(f'"{n}": "," ' for n in range(MANY + 2)) + "}"),
        body(ids(MANY), f', "stop_token_ids": [{"0.5," * (MANY + 2)} 1]'),
        body(ids(MANY), f', "prompt": {ids(MANY)}, "prompt": "x"'),
    ],
)
async def test_other_values_in_such_numbers_are_refused(raw: bytes) -> None:
    with pytest.raises(ApiError, match="too many values") as refused:
        await read_body("completions", raw)
    assert refused.value.status == 413


@pytest.mark.parametrize(
    "text",
    [
        "," * (3 << 20),
        ids(MANY),
        '\\"' + ids(MANY) + "\\\\",
        "\\\\\\\\" + ids(MANY),
        "[{" * (1 << 20),
    ],
)
async def test_text_is_text_whatever_is_in_it(text: str) -> None:
    raw = body(f'"{text}"')
    found = await read_body("completions", raw)
    assert found.fields == json.loads(raw)
    assert found.ids == 0


@pytest.mark.parametrize(
    "raw",
    [
        body(f"[{ids(40_000)}, {ids(50_000)}]"),
        body(f'["x", {ids(40_000)}]', ', "n": 2'),
        body('"x"', f', "stop_token_ids": {ids(40_000)}'),
    ],
)
async def test_some_values_beside_a_prompt_are_read_whatever_they_are(raw: bytes) -> None:
    found = await read_body("completions", raw)
    assert found.fields == json.loads(raw)
    assert found.ids == 0


@pytest.mark.parametrize("count", [1, 10, 20_000])
async def test_a_short_list_stays_a_list(count: int) -> None:
    found = await read_body("completions", body(ids(count)))
    assert found.ids == 0
    assert len(found.fields["prompt"]) == count
