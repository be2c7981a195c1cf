"""Hostile values, and putting them anywhere into a JSON value."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 5, 2**31, 2**63, 2**64, 0.5, 1e308, -1e308, math.inf, -math.inf,
    math.nan, "", " ", "x" * 100_000, "\x00", "\ud800", "1e999", "9" * 5000, "-1", "NaN", "٣",
    "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00", [], [[]], [None], [5], ["x"], {}, {"": {}},
    {"a": 5}, [{}], [{"name": 5}], [{"type": []}], {"key": [{}]},
)  # fmt: skip


def deep(levels: int = 600) -> Any:
    """A value nested `levels` deep."""
    value: Any = "x"
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


Path = tuple[str | int, ...]


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    """Every place of a JSON value, its own included."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def put(document: Any, path: Path, value: Any) -> Any:
    """A copy with `value` at one place; the rest is shared."""
    if not path:
        return value
    changed = copy.copy(document)
    changed[path[0]] = put(document[path[0]], path[1:], value)
    return changed


def without(document: Any, path: Path) -> Any:
    """A copy without what is at one place."""
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    if isinstance(parent, dict):
        return put(document, path[:-1], {k: v for k, v in parent.items() if k != path[-1]})
    return put(document, path[:-1], [v for i, v in enumerate(parent) if i != path[-1]])
