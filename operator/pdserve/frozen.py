"""JSON objects that no code changes any more, with what was worked out from them.

A cache never changes an object that it holds: a new version is a new object. What a function reads
out of one version is therefore right for as long as that version is meant, and a reader of
hundreds of unchanged objects again and again need not read them again. Only objects of type
`Frozen` remember; any other dict is read anew each time. Neighbours: `kube.cache` holds `Frozen`
objects, readers of tables and of stored states are `remembered`.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Final, Generic, TypeVar

from pdserve.terms.json import JsonMap, JsonObject

T = TypeVar("T")
MAX_KEPT: Final = 4096


class Frozen(JsonObject):
    """A JSON object that stays as it is; a changed copy (`{**obj}`) is a plain dict again."""

    __slots__ = ("derived",)

    def __init__(self, obj: JsonMap) -> None:
        """Take the members of `obj`, which no code may change from now on."""
        super().__init__(obj)
        self.derived: dict[Hashable, Any] = {}
        """Results by the function that found them."""


def remembered(read: Callable[[JsonMap], T]) -> Callable[[JsonMap], T]:
    """A pure function of one JSON object: run once per `Frozen` object, each time on others.

    Its result is shared and must not be changed. An error is not remembered.
    """

    @functools.wraps(read)
    def known(obj: JsonMap) -> T:
        if not isinstance(obj, Frozen):
            return read(obj)
        derived = obj.derived
        if known in derived:
            found: T = derived[known]
            return found
        result = derived[known] = read(obj)
        return result

    return known


class Memo(Generic[T]):
    """Results by the identity of unchangeable things that have no place for them: models, specs."""

    def __init__(self, most: int = MAX_KEPT) -> None:
        """Keep `most` results; the one made longest ago goes first."""
        self._most = most
        self._kept: OrderedDict[Hashable, tuple[tuple[object, ...], T]] = OrderedDict()

    def of(self, make: Callable[[], T], *things: object, by: Hashable = ()) -> T:
        """`make()`, which reads nothing but `things` and `by`: called once as long as it is kept.

        The things are kept with the result, so that their ids are not given to others meanwhile;
        `by` is compared as usual. The result is shared and must not be changed.
        """
        key: Hashable = (id(things[0]), by) if len(things) == 1 else (*map(id, things), by)
        found = self._kept.get(key)
        if found is not None:
            return found[1]
        result = make()
        self._kept[key] = (things, result)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return result
