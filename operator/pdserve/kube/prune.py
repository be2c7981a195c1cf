"""Which parts of an object a cache keeps. Used by `cache`; made by its owners from field paths.

A pod is 5 to 10 KB of JSON, of which a plan reads a tenth. What is left out also cannot wake
anyone: an update that changes only dropped fields (a node's heartbeat) is no change.
"""

from __future__ import annotations

from collections.abc import Callable
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
_Tree = dict[str, "_Tree | None"]


def keep(*paths: str, where: Callable[[Object], bool] | None = None) -> Prune:
    """A pruning function that keeps these dotted paths, and identity, labels and owners always.

    A path ends at whatever it names, kept whole; lists on the way are walked through:
    `status.conditions.type` keeps the type of every condition. A key with dots in it is written
    in brackets: `metadata.annotations[pdserve.io/x]`. `where`, given the whole object, says
    which objects to keep at all.

    Raises:
        ValueError: a malformed path.
    """
    tree: _Tree = {}
    for path in (*_ALWAYS, *paths):
        _plant(tree, _split(path), path)

    def prune(obj: Object) -> Object | None:
        if where is not None and not where(obj):
            return None
        kept: Object = _cut(obj, tree)
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


def _cut(value: Any, tree: _Tree) -> Any:
    if isinstance(value, list):
        return [_cut(item, tree) for item in value]
    if not isinstance(value, dict):
        return value
    kept: Object = {}
    for key, branch in tree.items():
        if key in value:
            kept[key] = value[key] if branch is None else _cut(value[key], branch)
    return kept
