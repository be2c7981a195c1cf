"""What is said while something lasts."""

from __future__ import annotations

import pytest

from localcluster import errors
from localcluster.errors import sparsely


def test_what_lasts_is_said_once_in_a_while_and_not_at_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0.0, 5.0, 10.0, 12.0, 19.9, 20.0])
    monkeypatch.setattr(errors.time, "monotonic", lambda: next(clock))
    said: list[str] = []
    still = sparsely(said.append, seconds=10.0)
    for line in ("5 s", "10 s", "12 s", "19.9 s", "20 s"):
        still(line)
    assert said == ["10 s", "20 s"]
