"""Prompt blocks on the wire: what is written is read, and nothing else is."""

from __future__ import annotations

import random
from array import array

import orjson
import pytest

from pdserve.wire.bounds import WireError
from pdserve.wire.prefixes import (
    LINE_DIGESTS,
    MAX_DIGESTS,
    MAX_LINE,
    MAX_PROMPT_DIGESTS,
    PromptBlocks,
    blocks_header,
    feed_lines,
    parse_blocks,
    parse_line,
    parse_wanted,
    snapshot_lines,
    wanted,
)


def digests(count: int) -> array[int]:
    rng = random.Random(count)
    return array("Q", [rng.getrandbits(64) for _ in range(count)])


@pytest.mark.parametrize("count", [1, 2, 64, MAX_PROMPT_DIGESTS])
def test_a_header_brings_the_blocks(count: int) -> None:
    blocks = PromptBlocks(digests(count), 1 / (count + 0.5))
    name, value = blocks_header(blocks)
    found = parse_blocks(value.decode())
    assert found.digests == blocks.digests
    assert found.share == pytest.approx(blocks.share, rel=1e-4)
    assert name == name.lower()
    assert len(value) < 24 << 10


@pytest.mark.parametrize(
    "value",
    [
        "", " ", "2", "2 ", "AAAAAAAAAAA=", "2 AAAA", "2 AAAAAAAAAA==", "x AAAAAAAAAAA=",
        "0.5 AAAAAAAAAAA=", "nan AAAAAAAAAAA=", "inf AAAAAAAAAAA=", "-1 AAAAAAAAAAA=",
        "1e999 AAAAAAAAAAA=", "2 !AAAAAAAAAA=", "2 AAAAAAAAAAA=\x00", "2 é",
        blocks_header(PromptBlocks(digests(MAX_PROMPT_DIGESTS + 1), 0.0001))[1].decode(),
    ],
)  # fmt: skip
def test_a_header_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(WireError):
        parse_blocks(value)


@pytest.mark.parametrize("count", [0, 1, LINE_DIGESTS, 3 * LINE_DIGESTS + 5, MAX_DIGESTS])
def test_lines_bring_digests_in_their_order(count: int) -> None:
    held, gone = digests(count), digests(count // 2)
    lines = list(feed_lines(held, gone))
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    assert all(len(line) < MAX_LINE for line in lines)
    parsed = [parse_line(line) for line in lines]
    assert array("Q", [d for line in parsed for d in line.held]) == held
    assert array("Q", [d for line in parsed for d in line.gone]) == gone
    first, *rest = (parse_line(line) for line in snapshot_lines(held))
    assert first.snapshot == count
    assert array("Q", [d for line in rest for d in line.held]) == held
    assert parse_line(b"{}").snapshot is None


FULL = orjson.dumps({"held": "A" * (LINE_DIGESTS + 1) * 12})


@pytest.mark.parametrize(
    "line",
    [
        b"", b"null", b"[]", b"5", b'"held"', b"{", b'{"held": 5}', b'{"held": ["AAAA"]}',
        b'{"held": "AAAA"}', b'{"held": "!!!!"}', b'{"held": {}}', b'{"gone": true}',
        b'{"snapshot": -1}', b'{"snapshot": true}', b'{"snapshot": 1e3}', b'{"snapshot": "5"}',
        b'{"snapshot": 65537}', b'{"snapshot": 1e999}', b"[" * 5000, b'{"held": ' + b"[" * 40,
        b'{"x": {"x": {"x": {}}}}', b'{"held": "\xff"}', b" " * (MAX_LINE + 1), FULL,
    ],
)  # fmt: skip
def test_a_line_that_is_none_is_refused(line: bytes) -> None:
    with pytest.raises(WireError):
        parse_line(line)


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b'{"most": 0}', b'{"most": -5}', b'{"most": 65537}', b'{"most": 1.5}',
     b'{"most": null}', b'{"most": "5"}', b" " * 300],
)  # fmt: skip
def test_a_gateway_that_asks_for_nonsense_is_refused(body: bytes) -> None:
    with pytest.raises(WireError):
        parse_wanted(body)


def test_a_gateway_asks_for_a_number_of_digests() -> None:
    assert [parse_wanted(wanted(n)) for n in (1, 512, MAX_DIGESTS)] == [1, 512, MAX_DIGESTS]
