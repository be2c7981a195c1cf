"""Everything the loop knows as JSON and back, so that any decision can be re-run.

One codec for all dataclasses of this package, driven by their type hints: keys sorted, no spaces,
floats in Python's shortest exact form, so equal values give equal bytes. Unknown keys are refused:
a record of another version must not be half understood.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from enum import Enum
from functools import cache
from typing import Any, TypeVar

from pdserve.ratio.decide import decide
from pdserve.ratio.types import Decision, DecisionInput
from pdserve.terms.json import JsonObject
from pdserve.wire.bounds import WireError, parse_json

T = TypeVar("T")
_PLAIN = (str, bool, type(None))


class RecordError(ValueError):
    """A record does not have the expected shape; the message names the field path and value."""


def to_json(value: object) -> str:
    """One line of JSON for a dataclass of this package; equal values give equal lines.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(encode(value, type(value)), sort_keys=True, separators=(",", ":"))


def from_json(kind: type[T], text: str) -> T:
    """The value written by `to_json`.

    Raises:
        RecordError: the text is not JSON or not of this kind; the message has the field's path.
    """
    try:
        raw = parse_json(text)
    except WireError as error:
        raise RecordError(str(error)) from error
    return typing.cast(T, decode(raw, kind, kind.__name__))


def record(inp: DecisionInput, decision: Decision) -> str:
    """One line of a decision log: the input and what came out of it."""
    return json.dumps(
        {"input": encode(inp, DecisionInput), "decision": encode(decision, Decision)},
        sort_keys=True,
        separators=(",", ":"),
    )


def replay(line: str) -> tuple[Decision, Decision, bool]:
    """Decide a recorded input again: (recorded, decided now, equal byte for byte).

    Raises:
        RecordError: the line is not one of `record`.
    """
    try:
        raw = parse_json(line)
    except WireError as error:
        raise RecordError(str(error)) from error
    if not isinstance(raw, dict) or set(raw) != {"input", "decision"}:
        raise RecordError("record: want an object with keys input and decision")
    recorded = typing.cast(Decision, decode(raw["decision"], Decision, "decision"))
    again = decide(typing.cast(DecisionInput, decode(raw["input"], DecisionInput, "input")))
    return recorded, again, to_json(recorded) == to_json(again)


def encode(value: Any, hint: Any) -> Any:
    """Plain JSON data for a value of type `hint`.

    Raises:
        ValueError: a number is NaN or infinite.
        TypeError: `hint` is a type that records do not hold.
    """
    kind: Any = type(value)
    if value is None or kind is str or kind is bool:
        return value
    if kind is float and math.isfinite(value):
        return value
    if kind is float or kind is int:
        return _number(value, hint)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return value
    if _is_dataclass(kind):
        made: JsonObject = {}
        for name, part in _hints(kind).items():
            item = getattr(value, name)
            plain = type(item) in _PLAIN or (type(item) is float and math.isfinite(item))
            made[name] = item if plain else encode(item, part)
        return made
    if isinstance(value, tuple):
        return [encode(item, kind) for item, kind in zip(value, _items(hint, value), strict=True)]
    if isinstance(value, int | float):
        return _number(value, hint)
    raise TypeError(f"{type(value).__name__} has no JSON form here")


def decode(raw: Any, hint: Any, path: str) -> Any:
    """The value of type `hint` in plain JSON data; `path` names it in errors."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(raw, typing.get_args(hint), path)
    if origin is typing.Literal:
        return _expect(raw in typing.get_args(hint), raw, path, f"one of {typing.get_args(hint)}")
    if origin is tuple:
        _expect(isinstance(raw, list), raw, path, "a list")
        kinds = _items(hint, raw)
        return tuple(
            decode(item, kind, f"{path}[{i}]")
            for i, (item, kind) in enumerate(zip(raw, kinds, strict=True))
        )
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _decode_object(raw, hint, path)
    if isinstance(hint, type) and issubclass(hint, Enum):
        values = [member.value for member in hint]
        return hint(_expect(raw in values, raw, path, f"one of {values}"))
    if hint is float:
        numeric = isinstance(raw, int | float) and not isinstance(raw, bool)
        return float(_expect(numeric, raw, path, "a number"))
    if hint is int:
        return _expect(isinstance(raw, int) and not isinstance(raw, bool), raw, path, "an integer")
    return _expect(isinstance(raw, hint), raw, path, f"a {hint.__name__}")


def _decode_object(raw: Any, kind: Any, path: str) -> Any:
    _expect(isinstance(raw, dict), raw, path, "an object")
    hints = _hints(kind)
    unknown = sorted(set(raw) - set(hints))
    if unknown:
        raise RecordError(f"{path}.{unknown[0]}: unknown field")
    missing = sorted(set(hints) - set(raw))
    if missing:
        raise RecordError(f"{path}.{missing[0]}: missing")
    return kind(**{name: decode(raw[name], hint, f"{path}.{name}") for name, hint in hints.items()})


def _decode_union(raw: object, kinds: tuple[object, ...], path: str) -> object:
    """The first alternative whose JSON form this is; the fields of an object decide."""
    if raw is None:
        return _expect(type(None) in kinds, raw, path, "a value")
    for kind in kinds:
        if kind is type(None):
            continue
        is_object = dataclasses.is_dataclass(kind) and isinstance(kind, type)
        if isinstance(raw, dict) and is_object and set(raw) == set(_hints(kind)):
            return decode(raw, kind, path)
        if not isinstance(raw, dict) and not is_object:
            return decode(raw, kind, path)
    names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise RecordError(f"{path}: {raw!r:.80}: want {names}")


def _number(value: float, hint: object) -> float:
    """Floats stay floats even when whole, so that 1 and 1.0 give the same bytes."""
    if not math.isfinite(value):
        raise ValueError(f"{value} has no JSON form; an unmeasured quantity is Unknown")
    return float(value) if _wants_float(hint) else value


@cache
def _wants_float(hint: object) -> bool:
    return hint is float or float in typing.get_args(hint)


def _items(hint: Any, value: Any) -> list[Any]:
    args = _kinds(hint)
    if len(args) == 2 and args[1] is Ellipsis:
        return [args[0]] * len(value)
    if len(args) != len(value):
        raise RecordError(f"a tuple of {len(args)} items, not {len(value)}")
    return list(args)


def _expect(good: bool, raw: Any, path: str, want: str) -> Any:
    if not good:
        raise RecordError(f"{path}: {raw!r:.80}: want {want}")
    return raw


@cache
def _kinds(hint: Any) -> tuple[Any, ...]:
    """Of the items of a tuple, or of the tuple among alternatives."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(kind for kind in typing.get_args(hint) if typing.get_origin(kind) is tuple)
    return typing.get_args(hint)


@cache
def _is_dataclass(kind: type) -> bool:
    return dataclasses.is_dataclass(kind)


@cache
def _hints(kind: object) -> JsonObject:
    return typing.get_type_hints(kind)
