"""Which parts of an object a cache keeps. Used by `cache`; made by its owners from field paths.

A pod is 5 to 10 KB of JSON, of which a plan reads a tenth. What is left out also wakes no
handler: an update that changes only dropped fields (a node's heartbeat) is no change.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from sys import intern
from typing import Any

from pdserve.kube.resource import Object

Prune = Callable[[Object], Object | None]
"""Maps an object to what is kept of it, or None to keep nothing (as if it did not exist)."""

_ALWAYS = (
    "apiVersion",
    "kind",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "metadata.resourceVersion",
    "metadata.generation",
    "metadata.creationTimestamp",
    "metadata.deletionTimestamp",
    "metadata.labels",
    "metadata.ownerReferences",
)
_SHORT = 24
"""Longer strings (uids, container ids) are hardly ever equal."""
_TEXTS = frozenset({str, bool})
"""No numbers: 1 and True are equal, and must not be shared."""
_Tree = dict[str, "_Tree | None"]


def keep(*paths: str) -> Callable[[Object], Object]:
    """A pruning function that keeps these dotted paths, and identity, labels and owners always.

    A path ends at whatever it names, kept whole; lists on the way are walked through:
    `status.conditions.type` keeps the type of every condition. A key with dots in it is written
    in brackets: `metadata.annotations[pdserve.io/x]`.

    Raises:
        ValueError: a malformed path.
    """
    tree: _Tree = {}
    shared = _Shared()
    for path in (*_ALWAYS, *paths):
        _plant(tree, _split(path), path)

    def prune(obj: Object) -> Object:
        kept: Object = _cut(obj, tree, shared)
        return kept

    return prune


def without_managed_fields(obj: Object) -> Object:
    """Keep all but `metadata.managedFields`, which is often half of a small object."""
    meta = obj["metadata"]
    if "managedFields" not in meta:
        return obj
    return {**obj, "metadata": {k: v for k, v in meta.items() if k != "managedFields"}}


def _split(path: str) -> list[str]:
    parts: list[str] = []
    rest = path
    while rest:
        if rest.startswith("["):
            key, bracket, rest = rest[1:].partition("]")
            if not bracket:
                raise ValueError(f"path {path!r}: '[' without ']'")
            rest = rest.removeprefix(".")
        else:
            cut = min((i for i in (rest.find("."), rest.find("[")) if i >= 0), default=len(rest))
            key, rest = rest[:cut], rest[cut:].removeprefix(".")
        if not key:
            raise ValueError(f"path {path!r}: an empty part")
        parts.append(intern(key))
    if not parts:
        raise ValueError("an empty path")
    return parts


def _plant(tree: _Tree, parts: list[str], path: str) -> None:
    for part in parts[:-1]:
        branch = tree.setdefault(part, {})
        if branch is None:
            return  # a shorter path already keeps all of it
        tree = branch
    tree[parts[-1]] = None


class _Shared:
    """Makes equal small parts of many objects one part in memory.

    Most of what is kept of a pod (conditions, owner references, label values) equals that of
    another. Safe because what a cache hands out is never changed. Bounded: when full it starts
    anew, and parts shared so far stay shared.
    """

    def __init__(self, capacity: int = 4096) -> None:
        self._capacity = capacity
        self._parts: dict[Hashable, object] = {}

    def part(self, value: object) -> object:
        """The one value that stands for all equal ones: short strings, flat objects of strings."""
        key: Hashable
        if type(value) is str:
            if len(value) > _SHORT:
                return value
            key = value
        elif type(value) is dict and _TEXTS.issuperset(map(type, value.values())):
            key = tuple(value.items())
        else:
            return value
        if len(self._parts) > self._capacity:
            self._parts.clear()
        return self._parts.setdefault(key, value)


def _cut(value: Any, tree: _Tree, shared: _Shared) -> Any:
    if isinstance(value, list):
        return [shared.part(_cut(item, tree, shared)) for item in value]
    if not isinstance(value, dict):
        return value
    kept: Object = {}
    for key, branch in tree.items():
        if key in value:
            if branch is None:
                kept[key] = _whole(value[key], shared)
            else:
                kept[key] = _cut(value[key], branch, shared)
    return kept


def _whole(value: object, shared: _Shared) -> object:
    if type(value) is dict:
        return shared.part({key: _whole(item, shared) for key, item in value.items()})
    if type(value) is list:
        return [_whole(item, shared) for item in value]
    return shared.part(value)
