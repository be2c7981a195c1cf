"""Results kept for what never changes: found once per version of an object, never for others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from pdserve.frozen import Frozen, Memo, remembered


class Counted:
    """A function of one object that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

        @remembered
        def size(obj: Mapping[str, Any]) -> int:
            self.calls += 1
            return len(obj["items"])

        self.size = size


def test_a_frozen_object_is_read_once_and_its_changed_copy_anew() -> None:
    counted, obj = Counted(), Frozen({"items": [1, 2]})
    assert (counted.size(obj), counted.size(obj), counted.calls) == (2, 2, 1)
    assert counted.size({**obj, "items": []}) == 0


def test_any_other_object_is_read_each_time_because_it_may_change() -> None:
    counted, obj = Counted(), {"items": [1]}
    assert counted.size(obj) == 1
    obj["items"].append(2)
    assert counted.size(obj) == 2


def test_an_error_is_not_remembered() -> None:
    counted, obj = Counted(), Frozen({})
    for _ in range(2):
        with pytest.raises(KeyError):
            counted.size(obj)
    assert counted.calls == 2


def test_a_memo_tells_things_apart_by_identity_and_by_what_else_is_asked() -> None:
    memo: Memo[int] = Memo()
    one, equal = {"a": 1}, {"a": 1}
    numbers = iter(range(10))
    asked = [
        memo.of(lambda: next(numbers), *things, by=by)
        for things, by in (((one,), 1), ((one,), 1), ((equal,), 1), ((one,), 2), ((one, equal), 1))
    ]
    assert asked == [0, 0, 1, 2, 3]


def test_a_memo_keeps_the_newest_only_and_their_things_with_them() -> None:
    memo: Memo[int] = Memo(most=2)
    things = [[n] for n in range(3)]
    for thing in things:
        memo.of(lambda thing=thing: thing[0], thing)  # type: ignore[misc]
    assert memo.of(lambda: -1, things[2]) == 2
    assert memo.of(lambda: -1, things[0]) == -1
