"""Prompts as chained digests: what is equal, what is apart, what is bounded."""

from __future__ import annotations

import orjson
import pytest

from pdserve.forwarding.prefix.blocks import (
    BLOCK_BYTES,
    BLOCK_IDS,
    MAX_BLOCKS,
    NO_BLOCKS,
    prompt_blocks,
)
from pdserve.terms.json import JsonObject

KEY = b"k" * 32
TEXT = "".join(f"line {n}\n" for n in range(1000))


def digests(body: JsonObject, key: bytes = KEY) -> list[int]:
    return list(prompt_blocks(body, key).digests)


def chat(*contents: object, **fields: object) -> JsonObject:
    roles = ("system", "user", "assistant")
    messages = [{"role": roles[n % 3], "content": c} for n, c in enumerate(contents)]
    return {"messages": messages, **fields}


def shared(a: list[int], b: list[int]) -> int:
    """How many leading digests are equal; no later ones may be."""
    count = next(
        (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    assert not set(a[count:]) & set(b[count:])
    return count


def test_equal_beginnings_have_equal_digests_up_to_the_first_difference() -> None:
    whole = digests({"prompt": TEXT})
    assert len(whole) == len(TEXT) // BLOCK_BYTES
    changed = TEXT[: 5 * BLOCK_BYTES + 7] + "#" + TEXT[5 * BLOCK_BYTES + 8 :]
    assert shared(whole, digests({"prompt": changed})) == 5
    assert shared(whole, digests({"prompt": "#" + TEXT[1:]})) == 0
    assert shared(whole, digests({"prompt": [TEXT]})) == len(whole)


def test_a_longer_conversation_begins_with_the_shorter_one() -> None:
    short = digests(chat(TEXT, "why?"))
    long = digests(chat(TEXT, "why?", TEXT, "and then?"))
    assert shared(short, long) == len(short) > 10
    assert shared(short, digests(chat(TEXT, "why?", tools=[{"type": "function"}]))) == 0
    parts = [{"type": "text", "text": TEXT}]
    assert shared(digests(chat(parts)), digests(chat(parts, "more"))) == len(digests(chat(parts)))


def test_two_keys_have_no_digest_in_common() -> None:
    for body in ({"prompt": TEXT}, chat(TEXT), {"prompt": list(range(1000))}):
        assert not set(digests(body)) & set(digests(body, b"another"))


def test_token_ids_are_blocks_of_their_own() -> None:
    ids = list(range(10 * BLOCK_IDS + 5))
    assert len(digests({"prompt": ids})) == 10
    assert shared(digests({"prompt": ids}), digests({"prompt": ids[: 3 * BLOCK_IDS]})) == 3
    assert not set(digests({"prompt": ids})) & set(digests({"prompt": str(ids)}))


def test_the_first_ids_of_a_list_that_is_still_json_are_those_of_the_list() -> None:
    ids = [n % 7 + 100_000 for n in range(200_000)]
    parsed = prompt_blocks({"prompt": ids}, KEY)
    fragment = orjson.Fragment(orjson.dumps(ids))
    for prompt in (fragment, [fragment]):
        unread = prompt_blocks({"prompt": prompt}, KEY)
        assert 100 < len(unread.digests) < len(parsed.digests)
        assert list(unread.digests) == list(parsed.digests[: len(unread.digests)])
        assert unread.share == pytest.approx(parsed.share, rel=0.02)


@pytest.mark.parametrize(
    "prompt",
    ["", "short", [], [1, 2], [-1] * 63, [1 << 40] * 1000, ["a", "b"], [[1], [2]], None, 7],
)
def test_what_has_no_whole_block_or_no_known_form_has_none(prompt: object) -> None:
    assert prompt_blocks({"prompt": prompt}, KEY) == NO_BLOCKS


def test_a_huge_prompt_has_a_bounded_number_of_blocks() -> None:
    huge = "x" * (4 << 20)
    blocks = prompt_blocks({"prompt": huge}, KEY)
    assert len(blocks.digests) == MAX_BLOCKS
    assert blocks.share == pytest.approx(BLOCK_BYTES / len(huge))
    many = prompt_blocks(chat(*["x" * 1000] * 4000), KEY)
    assert len(many.digests) == MAX_BLOCKS
    assert many.share * MAX_BLOCKS == pytest.approx(MAX_BLOCKS * BLOCK_BYTES / 4e6, rel=0.02)
    ids = prompt_blocks({"prompt": [5] * (1 << 20)}, KEY)
    assert len(ids.digests) == MAX_BLOCKS
    assert ids.share == pytest.approx(BLOCK_IDS / (1 << 20))
