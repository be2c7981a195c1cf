"""Patches and field ownership of the in-memory API model, as the real API server does them.

Lists are atomic unless the kind says that their items have keys (`Keys`). Ownership is kept in
the real `managedFields` form (fieldsV1), so code that reads or rewrites it works on both.
Source: KEP-555 and sigs.k8s.io/structured-merge-diff; test_kube_conformance compares the results
with a real server's.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import orjson

from pdserve.frozen import Memo
from pdserve.kube.errors import KubeError
from pdserve.terms.json import JsonMap, JsonObject

T = TypeVar("T")
Keys = Mapping[tuple[str, ...], tuple[str, ...]]
"""List path -> names of its items' key fields; () for a set of scalars. `*` stands for an item."""
Path = tuple[str, ...]
"""fieldsV1 elements: `f:name`, `k:{...}`, `v:...`."""

COMMON_KEYS: Keys = {("metadata", "ownerReferences"): ("uid",), ("metadata", "finalizers"): ()}
ATOMIC_ITEMS = frozenset({("metadata", "ownerReferences", "*")})
_NOT_OWNED = frozenset(
    {"name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp",
     "deletionTimestamp", "deletionGracePeriodSeconds", "managedFields", "selfLink",
     "generateName"}
)  # fmt: skip


def copy(value: T) -> T:
    """A deep copy of JSON."""
    if value is None or value is True or value is False or type(value) is str:
        return value
    duplicate: T = orjson.loads(orjson.dumps(value))
    return duplicate


# --- patches ---------------------------------------------------------------------------------


def json_patch(target: object, operations: Sequence[JsonMap]) -> object:
    """RFC 6902, of which controllers use add, remove, replace and test.

    Raises:
        KubeError: 422, a test fails or a path is not there.
    """
    document = copy(target)
    for operation in operations:
        parts = [p.replace("~1", "/").replace("~0", "~") for p in operation["path"].split("/")[1:]]
        try:
            _operate(document, parts, operation)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            message = "the server rejected our request due to an error in our request"
            raise KubeError(422, "Invalid", message) from error
    return document


def _operate(document: Any, parts: list[str], operation: JsonMap) -> None:
    for part in parts[:-1]:
        document = document[int(part)] if isinstance(document, list) else document[part]
    kind, last = operation["op"], parts[-1]
    at: Any = last
    if isinstance(document, list):
        at = len(document) if last == "-" else int(last)
    if kind == "test":
        if document[at] != operation["value"]:
            raise ValueError("test failed")
    elif kind == "remove":
        del document[at]
    elif kind == "add" and isinstance(document, list):
        document.insert(at, copy(operation["value"]))
    elif kind == "add":
        document[at] = copy(operation["value"])
    elif kind == "replace":
        # The server's library adds a member that is absent, against the RFC.
        document[at] = copy(operation["value"])
    else:
        raise ValueError(f"operation {kind!r} is not modelled")


def merge_patch(target: object, patch: object) -> object:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def strategic_patch(target: Any, patch: Any, keys: Keys, path: Path = ()) -> Any:
    """Kubernetes' merge: as RFC 7386, but keyed lists are merged item by item.

    Raises:
        NotImplementedError: the patch has a directive that controllers do not use.
    """
    if isinstance(patch, list) and path in keys:
        return _merge_lists(
            target or [], patch, keys, path, lambda a, b, p: strategic_patch(a, b, keys, p)
        )
    if not isinstance(patch, dict):
        return copy(patch)
    if "$patch" in patch or "$retainKeys" in patch:
        raise NotImplementedError("strategic merge directives are not modelled")
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = strategic_patch(result.get(key), value, keys, (*path, key))
    return result


def _merge_lists(old: list[Any], new: list[Any], keys: Keys, path: Path, merge: Any) -> list[Any]:
    result = list(old)
    places = {_item(item, keys[path]): index for index, item in enumerate(result)}
    for item in new:
        name = _item(item, keys[path])
        if name in places:
            result[places[name]] = merge(result[places[name]], item, (*path, "*"))
        else:
            places[name] = len(result)
            result.append(copy(item))
    return result


_compact = json.JSONEncoder(separators=(",", ":")).encode


def _item(item: JsonMap, key_fields: Sequence[str]) -> str:
    """The fieldsV1 element of a list item."""
    if not key_fields:
        return "v:" + _compact(item)
    if len(key_fields) == 1 and type(value := item.get(key_fields[0])) is str:
        return _one_key(key_fields[0], value)
    return "k:" + _compact({field: item[field] for field in sorted(key_fields) if field in item})


@functools.lru_cache(maxsize=1024)
def _one_key(field: str, value: str) -> str:
    return "k:" + _compact({field: value})


# --- field sets ------------------------------------------------------------------------------


def fields_of(value: JsonMap, keys: Keys) -> frozenset[Path]:
    """Leaf paths of what an object sets, identity and server-owned metadata left out."""
    return frozenset(leaves(value, keys))


def leaves(obj: JsonMap, keys: Keys) -> dict[Path, object]:
    """Each leaf path with its value; that of a list item itself (".") is True."""
    found: dict[Path, object] = {}
    for at, part in _parts(obj).items():
        found.update(_part_leaves(part, keys, at))
    return found


def _parts(obj: JsonMap) -> dict[tuple[str, ...], object]:
    """What an object sets: each field below it, of metadata and status each below them."""
    found: dict[tuple[str, ...], object] = {}
    for name, value in obj.items():
        if name == "metadata":
            found |= {(name, k): v for k, v in value.items() if k not in _NOT_OWNED}
        elif name == "status" and isinstance(value, dict) and value:
            found |= {(name, k): v for k, v in value.items()}
        elif name not in ("apiVersion", "kind"):
            found[name,] = value
    return found


_walked: Memo[dict[Path, object]] = Memo(most=512)


def _part_leaves(part: object, keys: Keys, at: tuple[str, ...]) -> dict[Path, object]:
    def walk() -> dict[Path, object]:
        return _walk({}, part, keys, tuple(f"f:{name}" for name in at), at)

    # Versions of an object share the parts that did not change.
    return _walked.of(walk, part, keys, by=at) if isinstance(part, dict | list) else walk()


def _walk(
    found: dict[Path, object], value: object, keys: Keys, path: Path, at: tuple[str, ...]
) -> dict[Path, object]:
    if isinstance(value, dict) and value and at not in ATOMIC_ITEMS:
        for key, child in value.items():
            _walk(found, child, keys, (*path, f"f:{key}"), (*at, key))
    elif isinstance(value, list) and at in keys:
        for item in value:
            here = (*path, _item(item, keys[at]))
            whole = not isinstance(item, dict) or (*at, "*") in ATOMIC_ITEMS
            found[here if whole else (*here, ".")] = item if whole else True
            if not whole:
                _walk(found, item, keys, here, (*at, "*"))
    elif path:
        found[path] = value
    return found


def difference(old: JsonMap, new: JsonMap, keys: Keys) -> tuple[frozenset[Path], frozenset[Path]]:
    """Leaves of `new` that are absent from `old` or have another value there; leaves that went."""
    before, after = _parts(old), _parts(new)
    changed: set[Path] = set()
    gone: set[Path] = set()
    for at in before.keys() | after.keys():
        if at in before and at in after and before[at] == after[at]:
            continue
        was = _part_leaves(before[at], keys, at) if at in before else {}
        values = _part_leaves(after[at], keys, at) if at in after else {}
        changed.update(p for p, v in values.items() if p not in was or was[p] != v)
        gone.update(was.keys() - values.keys())
    return frozenset(changed), frozenset(gone)


def to_fields_v1(paths: Iterable[Path]) -> JsonObject:
    """The nested form of `managedFields[].fieldsV1`."""
    tree: JsonObject = {}
    for path in sorted(paths):
        node = tree
        for element in path:
            node = node.setdefault(element, {})
    return tree


def from_fields_v1(tree: JsonMap, path: Path = ()) -> frozenset[Path]:
    """Leaf paths of `fieldsV1`."""
    found: set[Path] = set()
    for element, child in tree.items():
        if child:
            found |= from_fields_v1(child, (*path, element))
        else:
            found.add((*path, element))
    return frozenset(found)


_paths: Memo[frozenset[Path]] = Memo(most=512)
_trees: Memo[JsonObject] = Memo(most=512)


def _paths_of(tree: JsonObject) -> frozenset[Path]:
    """`from_fields_v1` of a stored tree, which is never changed."""
    return _paths.of(lambda: from_fields_v1(tree), tree)


def _tree_of(paths: frozenset[Path]) -> JsonObject:
    """`to_fields_v1`, the same tree for the same set."""

    def make() -> JsonObject:
        tree = to_fields_v1(paths)
        _paths.of(lambda: paths, tree)
        return tree

    return _trees.of(make, paths)


# --- ownership -------------------------------------------------------------------------------


class Ownership:
    """Who owns which fields of one object; an entry per manager, operation and subresource."""

    def __init__(self, managed: Sequence[JsonMap]) -> None:
        self.sets = {
            (entry["manager"], entry["operation"], entry.get("subresource", "")): _paths_of(
                entry["fieldsV1"]
            )
            for entry in managed
        }

    def managed_fields(self, api_version: str) -> list[JsonObject]:
        """The list to store; entries that own nothing are gone."""
        return [
            {
                "manager": manager,
                "operation": operation,
                "apiVersion": api_version,
                "fieldsType": "FieldsV1",
                "fieldsV1": _tree_of(paths),
                **({"subresource": subresource} if subresource else {}),
            }
            for (manager, operation, subresource), paths in sorted(self.sets.items())
            if paths
        ]

    def updated(
        self, manager: str, subresource: str, old: JsonMap, new: JsonMap, keys: Keys
    ) -> None:
        """A write other than apply: what it changed is now owned by its manager alone."""
        changed, gone = difference(old, new, keys)
        mine = (manager, "Update", subresource)
        for entry, paths in self.sets.items():
            lost = gone if entry == mine else changed | gone
            if not paths.isdisjoint(lost):
                self.sets[entry] = paths - lost
        before = self.sets.get(mine, frozenset())
        if not changed <= before:
            self.sets[mine] = before | changed

    def apply(
        self,
        manager: str,
        subresource: str,
        live: JsonMap,
        config: JsonMap,
        keys: Keys,
        force: bool,
    ) -> JsonObject:
        """Server-side apply; returns the merged object. Raises 409 on conflicts without force."""
        wanted = leaves(config, keys)
        current = leaves(live, keys)
        mine = (manager, "Apply", subresource)
        differing = {p for p, v in wanted.items() if p in current and current[p] != v}
        conflicts = {
            path: entry[0]
            for entry, paths in sorted(self.sets.items())
            for path in paths & differing
            if entry != mine
        }
        if conflicts and not force:
            raise _apply_conflict(conflicts)
        merged = _merge(live, config, keys, ())
        others: set[Path] = set()
        for entry, paths in self.sets.items():
            if entry != mine:
                if not paths.isdisjoint(differing):
                    self.sets[entry] = paths - differing
                others |= self.sets[entry]
        dropped = self.sets.get(mine, frozenset()) - wanted.keys() - others
        if self.sets.get(mine, frozenset()) != wanted.keys():
            self.sets[mine] = frozenset(wanted)
        if dropped:
            merged = copy(merged)  # it shares with `live` what it did not change
        for path in sorted(dropped, key=lambda p: (-len(p), p[-1] == ".", p)):
            _remove(merged, path, keys)
        return cast(JsonObject, merged)


def _apply_conflict(conflicts: Mapping[Path, str]) -> KubeError:
    causes = [
        {
            "reason": "FieldManagerConflict",
            "message": f'conflict with "{manager}"',
            "field": "." + ".".join(element.removeprefix("f:") for element in path),
        }
        for path, manager in sorted(conflicts.items())
    ]
    message = f"Apply failed with {len(causes)} conflict(s): {causes[0]['message']}"
    return KubeError(409, "Conflict", message, causes=tuple(causes))


def _merge(live: object, config: object, keys: Keys, at: tuple[str, ...]) -> object:
    if isinstance(config, list) and at in keys and isinstance(live, list):
        return _merge_lists(live, config, keys, at, lambda a, b, p: _merge(a, b, keys, p))
    if not isinstance(config, dict) or not isinstance(live, dict) or at in ATOMIC_ITEMS:
        return copy(config)
    result = dict(live)
    for key, value in config.items():
        result[key] = _merge(live.get(key), value, keys, (*at, key)) if key in live else copy(value)
    return result


def _remove(value: Any, path: Path, keys: Keys, at: tuple[str, ...] = ()) -> None:
    """Take one owned leaf out of `value`.

    A list item goes when it was owned as such (`.`) and no other manager's field is left in it; its
    key fields never go alone. A list or map that becomes empty goes too.
    """
    element, rest = path[0], path[1:]
    if element.startswith("f:"):
        name = element[2:]
        if name not in value:
            return
        if not rest:
            if not (at and at[-1] == "*" and name in keys.get(at[:-1], ())):
                del value[name]
            return
        _remove(value[name], rest, keys, (*at, name))
        if value[name] == {} or (value[name] == [] and (*at, name) in keys):
            del value[name]
        return
    key_fields = keys[at]
    for item in [item for item in value if _item(item, key_fields) == element]:
        if rest and rest != (".",):
            _remove(item, rest, keys, (*at, "*"))
        elif not rest or not set(item) - set(key_fields):
            value.remove(item)
