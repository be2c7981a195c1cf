"""What a body is counted as before it is parsed."""

from __future__ import annotations

import random

import pytest

from pdserve.gateway.intake import FEW_MARKS, count_mark, parsed_size


@pytest.mark.parametrize("length", [0, 1, FEW_MARKS, 40 * FEW_MARKS])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_marks_are_counted_however_many_there_are(length: int, share: float) -> None:
    rng = random.Random(length)
    raw = bytes(rng.choice(b",[{") if rng.random() < share else 97 for _ in range(length))
    for mark in (b",", b"[", b"{"):
        assert count_mark(raw, mark) == raw.count(mark)


def test_text_that_may_be_wide_counts_as_wide() -> None:
    plain = parsed_size(b"x" * 700)
    assert parsed_size(b"x" * 698 + b"\\n") == plain
    for wide in (b"\\u", "é".encode()):
        assert parsed_size(b"x" * 698 + wide) > 2 * plain
