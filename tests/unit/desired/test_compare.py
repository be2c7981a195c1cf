"""A live object is compared with what is desired by the fields that are set."""

from __future__ import annotations

from typing import Any

import pytest

from pdserve.desired.compare import covers


@pytest.mark.parametrize(
    ("live", "wanted", "same"),
    [
        ({"a": 1, "default": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({}, {"a": 1}, False),
        ({"l": [{"a": 1, "d": 0}, {"a": 2}]}, {"l": [{"a": 1}, {"a": 2}]}, True),
        ({"l": [{"a": 1}, {"a": 2}]}, {"l": [{"a": 1}]}, False),
        ({}, {"l": []}, True),
        ({}, {"m": {}}, True),
        ({"l": [1]}, {"l": []}, False),
        ({"m": None}, {"m": {"a": 1}}, False),
    ],
)
def test_only_fields_that_we_set_are_compared(live: Any, wanted: Any, same: bool) -> None:
    assert covers(live, wanted) is same
