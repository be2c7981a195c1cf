"""Parts of raw objects, whatever JSON they hold. Pure.

A text of another kind counts as absent. Where an object or a list is wanted, anything else is an
error: what it would have said cannot be left out without telling of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pdserve.terms.json import JsonMap, JsonValue
from pdserve.terms.shown import shown

_NOTHING: JsonMap = {}


class ObjectError(ValueError):
    """An object cannot be read; the message names the field and shows its value."""


def part(obj: JsonMap, field: str) -> JsonMap:
    """The object in a field; an empty one where it is absent.

    Raises:
        ObjectError: the field holds something else.
    """
    found = obj.get(field)
    if found is None:
        return _NOTHING
    if not isinstance(found, Mapping):
        raise ObjectError(f"{field}: want an object, got {shown(found)}")
    return found


def parts(obj: JsonMap, field: str) -> Sequence[JsonMap]:
    """The objects in a list; none where it is absent.

    Raises:
        ObjectError: the field holds something else.
    """
    return _items(obj, field, Mapping, "objects")


def text(obj: JsonMap, field: str) -> str:
    """The text in a field; "" where there is none."""
    found = obj.get(field)
    return found if isinstance(found, str) else ""


def whole(obj: JsonMap, field: str) -> int | None:
    """The whole number in a field; None where there is none."""
    found = obj.get(field)
    return found if type(found) is int else None


def texts(obj: JsonMap, field: str) -> Sequence[str]:
    """The texts in a list; none where it is absent.

    Raises:
        ObjectError: the field holds something else.
    """
    return _items(obj, field, str, "texts")


def _items(obj: JsonMap, field: str, kind: type, what: str) -> Sequence[JsonValue]:
    found = obj.get(field)
    if found is None:
        return ()
    if not isinstance(found, list | tuple) or not all(isinstance(x, kind) for x in found):
        raise ObjectError(f"{field}: want a list of {what}, got {shown(found)}")
    return found


def name_of(meta: JsonMap) -> str:
    """An object's name.

    Raises:
        ObjectError: it has none.
    """
    found = text(meta, "name")
    if not found:
        raise ObjectError(f"metadata.name: want a name, got {shown(meta.get('name'))}")
    return found
