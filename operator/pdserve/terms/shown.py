"""A value of any kind in a few characters, for messages about it."""

from __future__ import annotations

from typing import Final

_SHOWN: Final = 60
"""Characters of a text."""


def shown(value: object) -> str:
    """A short form of any value for messages: its start, or its type where it is large."""
    if isinstance(value, dict | list | tuple | set | frozenset):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, str | bytes):
        return repr(value[:_SHOWN]) + ("..." if len(value) > _SHOWN else "")
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    return type(value).__name__
