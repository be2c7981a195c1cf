"""Reads single fields of a request body; `null` is the same as absence."""

from __future__ import annotations

import math

from pdserve.refengine.errors import field_error
from pdserve.terms.json import JsonMap as Body


def integer(body: Body, name: str, default: int, low: int, high: int) -> int:
    """An integer from `low` to `high`; `default` where the field is absent.

    Raises:
        ApiError: 400, it is something else.
    """
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int or not low <= value <= high:
        raise field_error(name, value, f"an integer from {low} to {high} is required")
    return value


def number(body: Body, name: str, default: float, low: float, high: float) -> float:
    """A finite number from `low` to `high`; `default` where the field is absent.

    Raises:
        ApiError: 400, it is something else.
    """
    value = body.get(name)
    if value is None:
        return default
    wrong = isinstance(value, bool) or not isinstance(value, int | float)
    if wrong or not math.isfinite(value) or not low <= value <= high:
        raise field_error(name, value, f"a number from {low:g} to {high:g} is required")
    return float(value)


def boolean(body: Body, name: str, path: str = "") -> bool:
    """True or false; false where the field is absent. `path` stands before its name in errors.

    Raises:
        ApiError: 400, it is something else.
    """
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise field_error(path + name, value, "true or false is required")
    return value
