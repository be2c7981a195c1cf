"""Bounded reading of JSON that another process wrote.

Readers of another process's bytes (an engine's answer, a table in a ConfigMap, an annotation)
parse them with `parse_json` and take the values out with the checks below. Each check bounds a
value and raises `WireError` with the path of the field, and no other exception, whatever the value
is. Unknown fields are ignored, so that newer writers may add some. Pure; no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final, TypeVar, overload

import orjson

from pdserve.terms.json import JsonMap
from pdserve.terms.shown import shown

MAX_BYTES: Final = 1 << 20
"""Bytes of one document: what a ConfigMap can hold."""
MAX_DEPTH: Final = 32
"""Lists and objects inside one another."""
MAX_TEXT: Final = 1024
"""Characters of one string."""
MAX_ITEMS: Final = 16_384
"""Entries of one list or object."""
MAX_VERSION: Final = 2**52
"""Of a table. Versions rise by one: what claims a higher one was forged, and no reader follows it
to where no next version would be left."""
MAX_PASSED_VERSION: Final = MAX_VERSION // 2
"""Of the table that an instance says it holds: above it the operator ignores it, because
its next version must pass that one and have successors."""

_ENDPOINT = re.compile(
    r"https?://(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?(?:/[!-~]{0,256})?"
)

T = TypeVar("T")


class WireError(ValueError):
    """A document from another process does not have the agreed shape; the message says where."""


class _Required:
    """Stands for "no default": the field must be there."""


REQUIRED: Final = _Required()


def parse_json(raw: bytes | str, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Any:
    """The value of a JSON document of at most `max_bytes` bytes, nested at most `max_depth` deep.

    Numbers are finite: `NaN`, `Infinity` and numbers beyond a double are refused. Text is UTF-8.

    Raises:
        WireError: the document is longer, deeper or not JSON.
    """
    if len(raw) > max_bytes:
        raise WireError(f"document: {len(raw)} bytes, at most {max_bytes} are read")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise WireError(f"document: not JSON: {error!s:.200}") from None
    openings = (b"[", b"{") if isinstance(raw, bytes) else ("[", "{")
    # mypy joins the two branches: bytes count bytes, text counts text.
    if sum(map(raw.count, openings)) <= max_depth:  # type: ignore[arg-type]
        return value
    # Level by level: recursion would end where the interpreter's stack does.
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(max_depth):
        if not level:
            return value
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    if level:
        raise WireError(f"document: nested deeper than {max_depth}")
    return value


def text(value: object, path: str, *, most: int = MAX_TEXT) -> str:
    """`value` if it is a string of at most `most` characters.

    Raises:
        WireError: it is none, or longer; the message begins with `path`.
    """
    if not isinstance(value, str):
        raise WireError(f"{path}: want a string, got {shown(value)}")
    if len(value) > most:
        raise WireError(f"{path}: want at most {most} characters, got {len(value)}")
    return value


def integer(value: object, path: str, *, low: int = 0, high: int = 2**31 - 1) -> int:
    """`value` if it is a whole number in [low, high], both inclusive; true and false are none.

    Raises:
        WireError: it is none, or outside; the message begins with `path`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise WireError(f"{path}: want a whole number of {low} to {high}, got {shown(value)}")
    return value


def number(value: object, path: str, *, low: float = 0.0, high: float = 1e9) -> float:
    """`value` as a float if it is a finite number in [low, high], both inclusive.

    Raises:
        WireError: it is none (NaN, true and false included), or outside; the message begins with
            `path`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        # also for NaN
        raise WireError(f"{path}: want a number of {low:g} to {high:g}, got {shown(value)}")
    return float(value)


def items(value: object, path: str, *, most: int = MAX_ITEMS) -> list[object]:
    """`value` if it is a list of at most `most` entries; the entries are not looked at.

    Raises:
        WireError: it is none, or longer; the message begins with `path`.
    """
    if not isinstance(value, list):
        raise WireError(f"{path}: want a list, got {shown(value)}")
    if len(value) > most:
        raise WireError(f"{path}: want at most {most} entries, got {len(value)}")
    return value


def endpoint(value: object, path: str) -> str:
    """`value` without trailing slashes if it is an http(s) URL of host, port (1 to 65535) and path.

    Raises:
        WireError: it is none, or has user, query or fragment; the message begins with `path`.
    """
    url = text(value, path).rstrip("/")
    matched = _ENDPOINT.fullmatch(url)
    if matched is None or (matched[1] is not None and not 0 < int(matched[1]) < 65536):
        raise WireError(f"{path}: want a URL such as http://10.0.0.1:8000, got {shown(value)}")
    return url


class Fields:
    """One object of a document. Each method reads one field; messages carry its path.

    A field that is absent or null has the value `default`, or raises WireError without one.
    """

    __slots__ = ("_values", "path")

    def __init__(self, value: object, path: str) -> None:
        """Read the fields of `value`; `path` names it in errors.

        Raises:
            WireError: it is no object, or has more than MAX_ITEMS fields.
        """
        if not isinstance(value, Mapping):
            raise WireError(f"{path}: want an object, got {shown(value)}")
        if len(value) > MAX_ITEMS:
            raise WireError(f"{path}: want at most {MAX_ITEMS} fields, got {len(value)}")
        self._values = value
        self.path = path

    def has(self, key: str) -> bool:
        """Whether the field is there and not null."""
        return self._values.get(key) is not None

    def schema(self, version: int) -> None:
        """Refuse a document of another schema version.

        Raises:
            WireError: field `schemaVersion` is missing or not `version`.
        """
        found = self.integer("schemaVersion")
        if found != version:
            raise WireError(f"{self.path}: schemaVersion {found}, this process reads {version}")

    @overload
    def text(self, key: str, *, most: int = ...) -> str: ...
    @overload
    def text(self, key: str, default: T, *, most: int = ...) -> str | T: ...
    def text(self, key: str, default: object = REQUIRED, *, most: int = MAX_TEXT) -> object:
        """A string of at most `most` characters; see `text`.

        Raises:
            WireError: it is none or too long, or absent without a `default`.
        """
        value = self._values.get(key)
        if value is None:
            return self._absent(key, default)
        return text(value, f"{self.path}.{key}", most=most)

    @overload
    def integer(self, key: str, *, low: int = ..., high: int = ...) -> int: ...
    @overload
    def integer(self, key: str, default: T, *, low: int = ..., high: int = ...) -> int | T: ...
    def integer(
        self, key: str, default: object = REQUIRED, *, low: int = 0, high: int = 2**31 - 1
    ) -> Any:
        """A whole number in [low, high], both inclusive; see `integer`.

        Raises:
            WireError: it is none or outside, or absent without a `default`.
        """
        value = self._values.get(key)
        if value is None:
            return self._absent(key, default)
        return integer(value, f"{self.path}.{key}", low=low, high=high)

    def number(self, key: str, *, low: float = 0.0, high: float = 1e9) -> float:
        """A finite number in [low, high], both inclusive; see `number`. The field must be there.

        Raises:
            WireError: it is none, outside or absent.
        """
        return number(self._values.get(key), f"{self.path}.{key}", low=low, high=high)

    def endpoint(self, key: str) -> str:
        """A URL without trailing slashes; see `endpoint`. The field must be there.

        Raises:
            WireError: it is none or absent.
        """
        return endpoint(self._values.get(key), f"{self.path}.{key}")

    def choice(self, key: str, options: Collection[T]) -> T:
        """The one of `options` (strings) that the field equals. The field must be there.

        Raises:
            WireError: it equals none; the message lists them.
        """
        value = self._values.get(key)
        for option in options:
            if isinstance(value, str) and value == option:
                return option
        raise WireError(
            f"{self.path}.{key}: want one of {', '.join(map(str, options))}, got {shown(value)}"
        )

    def items(
        self, key: str, default: list[object] | _Required = REQUIRED, *, most: int = MAX_ITEMS
    ) -> list[object]:
        """A list of at most `most` entries of any kind; see `items`.

        Raises:
            WireError: it is none or longer, or absent without a `default`.
        """
        value = self._values.get(key)
        if value is None:
            found: list[object] = self._absent(key, default)
            return found
        return items(value, f"{self.path}.{key}", most=most)

    def objects(
        self, key: str, default: list[object] | _Required = REQUIRED, *, most: int = MAX_ITEMS
    ) -> list[Fields]:
        """A list of at most `most` objects, each with its path for messages.

        Raises:
            WireError: it is none or longer, an entry is no object, or absent without a `default`.
        """
        found = self.items(key, default, most=most)
        return [Fields(v, f"{self.path}.{key}[{i}]") for i, v in enumerate(found)]

    def texts(
        self, key: str, default: list[object] | _Required = REQUIRED, *, most: int = MAX_ITEMS
    ) -> list[str]:
        """A list of at most `most` strings of at most MAX_TEXT characters each.

        Raises:
            WireError: it is none or longer, an entry is no such string, or absent without a
                `default`.
        """
        found = self.items(key, default, most=most)
        return [text(v, f"{self.path}.{key}[{i}]") for i, v in enumerate(found)]

    def object(self, key: str, default: JsonMap | _Required = REQUIRED) -> Fields:
        """An object of at most MAX_ITEMS fields, with its path for messages.

        Raises:
            WireError: it is none or larger, or absent without a `default`.
        """
        value = self._values.get(key)
        if value is None:
            value = self._absent(key, default)
        return Fields(value, f"{self.path}.{key}")

    def text_map(
        self, key: str, default: Mapping[str, str] | _Required = REQUIRED
    ) -> dict[str, str]:
        """An object whose names and values are strings of at most MAX_TEXT characters.

        Raises:
            WireError: it is none, a value is no such string, or absent without a `default`.
        """
        inner = self.object(key, default)
        return {inner.name(k): inner.text(k) for k in inner._values}

    def integer_map(
        self, key: str, default: Mapping[str, int] | _Required = REQUIRED
    ) -> dict[str, int]:
        """An object whose values are whole numbers of 0 to 2^31 - 1.

        Raises:
            WireError: it is none, a value is no such number, or absent without a `default`.
        """
        inner = self.object(key, default)
        return {inner.name(k): inner.integer(k) for k in inner._values}

    def name(self, key: str) -> str:
        """A field's name, itself of at most MAX_TEXT characters.

        Raises:
            WireError: it is longer.
        """
        return text(key, f"{self.path}: name of a field")

    def _absent(self, key: str, default: Any) -> Any:
        if default is REQUIRED:
            raise WireError(f"{self.path}.{key}: missing")
        return default
