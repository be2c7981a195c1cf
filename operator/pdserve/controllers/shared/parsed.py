"""Typed models of cached objects, made once per version of an object.

A cached object is never changed in place: a new version is a new object. So the model of an object
is valid as long as the object is in the cache, and reconcilers that read the same version again
need not validate it again.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, TypeVar

from pdserve.api import InvalidObjectError
from pdserve.api.base import ApiModel
from pdserve.api.custom_resource import CustomResource
from pdserve.frozen import Frozen, Memo
from pdserve.kube.resource import Object

T = TypeVar("T", bound=CustomResource)
MAX_KEPT: Final = 4096
"""Models kept; the one made longest ago goes first."""

_specs: Memo[ApiModel] = Memo()
_kept: OrderedDict[int, tuple[Object, CustomResource]] = OrderedDict()


def parsed(kind: type[T], obj: Object) -> T:
    """The model of an object that comes from a cache.

    Raises:
        ApiError: as `kind.stored`.
    """
    known: tuple[object, CustomResource] | None = _kept.get(id(obj))
    # The object is kept with its model, so that its id is not given to another meanwhile.
    if known is not None and known[0] is obj and isinstance(known[1], kind):
        return known[1]
    model = _stored(kind, obj)
    _kept[id(obj)] = (obj, model)
    if len(_kept) > MAX_KEPT:
        _kept.popitem(last=False)
    return model


def _spec_of(kind: type[CustomResource]) -> type[ApiModel]:
    found = kind.model_fields["spec"].annotation
    if not isinstance(found, type) or not issubclass(found, ApiModel):
        raise TypeError(f"{kind.__name__} has no spec")
    return found


def _stored(kind: type[T], obj: Object) -> T:
    """`kind.stored`, with the model of the spec as long as the spec stays as it is."""
    spec = obj.get("spec")
    if not isinstance(obj, Frozen) or not isinstance(spec, dict):
        return kind.stored(obj)
    try:
        model = _specs.of(lambda: _spec_of(kind).parse(spec), spec)
    except InvalidObjectError:
        return kind.stored(obj)  # says where in the object it is wrong
    return kind.stored({**obj, "spec": model})
