"""Typed models of cached objects, made once per version of an object.

A cached object is never changed in place: a new version is a new object. So the model of an object
stays right for as long as the object itself is meant, and reconcilers that look at the same version
again and again need not validate it again.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final, TypeVar

from pdserve.api.resource import Resource
from pdserve.kube.resource import Object

T = TypeVar("T", bound=Resource)
MAX_KEPT: Final = 4096
"""Models kept; the one made longest ago goes first."""

_kept: OrderedDict[int, tuple[Object, Resource]] = OrderedDict()


def parsed(kind: type[T], obj: Object) -> T:
    """The model of an object that comes from a cache.

    Raises:
        ApiError: as `kind.stored`.
    """
    known: tuple[Any, Resource] | None = _kept.get(id(obj))
    # The object is kept with its model, so that its id is not given to another meanwhile.
    if known is not None and known[0] is obj and isinstance(known[1], kind):
        return known[1]
    model = kind.stored(obj)
    _kept[id(obj)] = (obj, model)
    if len(_kept) > MAX_KEPT:
        _kept.popitem(last=False)
    return model
