"""The objects that a cache holds, how they are found, and the handlers of their changes.

Nothing ever goes back: an object replaces an older version only, and one that is known to be gone
(by its uid) is not taken in again from what the server sent earlier. An object may be kept as JSON
(`Frozen`) or as a value of the cache's owner (`Identified`), which is then compared as a whole.
Used by `cache`, which reads what the server says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, Literal, Protocol, TypeVar

from pdserve.frozen import Frozen
from pdserve.kube.resource import Object, ObjectKey

logger = logging.getLogger(__name__)


class Identified(Protocol):
    """An object that is kept as a value: equal for versions between which nothing changed."""

    @property
    def uid(self) -> str:
        """Tells it from a former object of its name."""
        ...


K = TypeVar("K", bound=Object | Identified)
_NONE = object()
ChangeType = Literal["ADDED", "MODIFIED", "DELETED"]
Handler = Callable[[ChangeType, K | None, K | None], None]
"""`handler(event, old, new)`: old is None for ADDED, new is None for DELETED."""
Index = Callable[[K], Iterable[Hashable]]
OnSkip = Callable[[object, str, Exception], None]
"""`on_skip(object, where, error)`: `where` is `filter` or `index`."""


class HeldObjects(Generic[K]):
    """See the module."""

    def __init__(self, plural: str, on_skip: OnSkip, on_handler_error: Callable[[], None]) -> None:
        """`on_skip`: receives objects that an index cannot read; `plural`: for the log."""
        self.objects: dict[ObjectKey, K] = {}
        """Not to be changed by readers."""
        self.versions: dict[ObjectKey, int] = {}
        self.changes = 0
        """Versions taken in and objects dropped so far."""
        self._plural = plural
        self._on_skip = on_skip
        self._on_handler_error = on_handler_error
        self._handlers: list[Handler[K]] = []
        self._indexes: dict[str, _IndexStore[K]] = {}
        self._found: dict[tuple[str, Hashable], tuple[K, ...]] = {}
        """What `by_index` found since the last change."""
        self._found_at = 0
        self._gone: dict[ObjectKey, object] = {}
        """Uids of objects that are gone although the watch has not shown their end."""

    def on_change(self, handler: Handler[K]) -> None:
        """Call `handler` for every change from now on."""
        self._handlers.append(handler)

    def add_index(self, name: str, values: Index[K]) -> None:
        """Keep objects findable by what `values(object)` yields."""
        store = self._indexes[name] = _IndexStore(values, self._on_skip)
        self._found.clear()
        for key, obj in self.objects.items():
            store.replace(key, None, obj)

    def by_index(self, index: str, value: Hashable) -> tuple[K, ...]:
        """Objects for which the index function yielded `value`, ordered by namespace and name."""
        if self._found_at != self.changes:
            self._found.clear()
            self._found_at = self.changes
        found = self._found.get((index, value))
        if found is None:
            keys = sorted(self._indexes[index].keys(value))
            found = self._found[index, value] = tuple(self.objects[key] for key in keys)
        return found

    def index_values(self, index: str) -> frozenset[Hashable]:
        """Values with at least one object."""
        return self._indexes[index].values()

    def store(self, key: ObjectKey, version: int, new: K | None) -> bool:
        """Take in a version (None: it is not wanted); False when as much is known already."""
        if version < self.versions.get(key, 0) or (
            version == self.versions.get(key) and key in self.objects
        ):
            return False
        if new is None:
            return self.drop(key)
        if self._gone.get(key, _NONE) == uid_of(new):
            return False
        old = self.objects.get(key)
        if old is not None and uid_of(old) != uid_of(new):
            self.drop(key)  # the same name, another object: not a modification
            old = None
        if isinstance(old, dict) and isinstance(new, Frozen):
            _share_spec(old, new)
        self.changes += 1
        self.objects[key] = new
        self.versions[key] = version
        if old is not None and _same(old, new):
            return True
        for store in self._indexes.values():
            store.replace(key, old, new)
        self._tell("ADDED" if old is None else "MODIFIED", old, new)
        return True

    def gone(self, key: ObjectKey) -> bool:
        """Forget an object that is gone before the watch or a list says so; False: not held."""
        held = self.objects.get(key)
        if held is None:
            return False
        self.drop(key)
        self._gone[key] = uid_of(held)
        return True

    def gone_keys(self) -> tuple[ObjectKey, ...]:
        """Keys of objects that are gone and whose end neither watch nor list has shown."""
        return tuple(self._gone)

    def drop(self, key: ObjectKey) -> bool:
        """Forget an object whose end the server has told; False when it was not held."""
        self._gone.pop(key, None)
        self.versions.pop(key, None)
        old = self.objects.pop(key, None)
        if old is None:
            return False
        self.changes += 1
        for store in self._indexes.values():
            store.replace(key, old, None)
        self._tell("DELETED", old, None)
        return True

    def _tell(self, event: ChangeType, old: K | None, new: K | None) -> None:
        for handler in self._handlers:
            try:
                handler(event, old, new)
            except Exception:
                # One bad handler must not blind the others, nor end the watch for good.
                logger.exception("Handler of %s failed", self._plural)
                self._on_handler_error()


def uid_of(kept: Object | Identified) -> object:
    """The uid of an object, in whichever form it is kept."""
    return kept["metadata"].get("uid") if isinstance(kept, dict) else kept.uid


def _share_spec(old: Object, new: Frozen) -> None:
    """Keep one copy of a spec over the versions that have it, so that it is read only once.

    Equal is not the same (1 and True are equal), so the server's count of changes must agree.
    """
    if new["metadata"].get("generation") != old["metadata"].get("generation"):
        return
    try:
        if "spec" in new and new["spec"] == old.get("spec"):
            new["spec"] = old["spec"]
    except RecursionError:
        return  # too deep to be compared


def _same(old: object, new: object) -> bool:
    """Equal but for the resourceVersion; objects too deep to be compared are not."""
    try:
        if isinstance(old, dict) and isinstance(new, dict):
            return _equal(old, new)
        return old == new
    except RecursionError:
        return False


def _equal(old: Object, new: Object) -> bool:
    old_meta, new_meta = old["metadata"], new["metadata"]
    if len(old) != len(new) or len(old_meta) != len(new_meta):
        return False
    return all(old.get(k) == v for k, v in new.items() if k != "metadata") and all(
        old_meta.get(k) == v for k, v in new_meta.items() if k != "resourceVersion"
    )


class _IndexStore(Generic[K]):
    def __init__(self, values: Index[K], on_skip: OnSkip) -> None:
        self._function = values
        self._on_skip = on_skip
        self._keys: dict[Hashable, set[ObjectKey]] = {}

    def replace(self, key: ObjectKey, old: K | None, new: K | None) -> None:
        before = self._values(old, tell=False)
        after = self._values(new, tell=True)
        for value in before - after:
            keys = self._keys[value]
            keys.discard(key)
            if not keys:
                del self._keys[value]
        for value in after - before:
            self._keys.setdefault(value, set()).add(key)

    def _values(self, obj: K | None, *, tell: bool) -> set[Hashable]:
        """Under which values an object is found: the same for equal objects, none on an error."""
        if obj is None:
            return set()
        try:
            return set(self._function(obj))
        except Exception as error:
            if tell:
                self._on_skip(obj, "index", error)
            return set()

    def keys(self, value: Hashable) -> Iterable[ObjectKey]:
        return self._keys.get(value, ())

    def values(self) -> frozenset[Hashable]:
        return frozenset(self._keys)
