"""What is derived from each leaf of a fabric, kept in its memo and read again where it changed.

`per_leaf` costs what the leaves cost that were never read or that changed since, and a copy of a
map of leaves. The fabric that follows another takes over what is known (`Derived`), and so does a
view that `reserve` made.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from pdserve.topology.fabric import MAX_CHANGED, Fabric
from pdserve.topology.tree import Path, Tree

FEW = 8
"""Changed nodes whose leaves may well be read again in one step."""
T = TypeVar("T")
Read = Callable[[Fabric, Path], T]
"""What is derived from one leaf; the same for the same leaf and nodes."""


@dataclass(frozen=True, slots=True)
class PerLeaf(Generic[T]):
    """What is known of the leaves of `tree`; leaves that are not in `found` were not read yet."""

    tree: Tree
    found: Mapping[Path, T]
    changed: frozenset[str] = frozenset()
    """Nodes that differ from those that were read."""

    @property
    def whole(self) -> bool:
        """All leaves were read once."""
        return len(self.found) == len(self.tree.leaves)

    def after(self, changed: frozenset[str]) -> PerLeaf[T] | None:
        """See `fabric.Derived`."""
        both = self.changed | changed
        return PerLeaf(self.tree, self.found, both) if len(both) <= MAX_CHANGED else None

    def still(self, tree: Tree) -> dict[Path, T]:
        """What holds in `tree`: all but leaves in which a node changed, left or joined."""
        found = dict(self.found)
        for name in self.changed:
            for path in (self.tree.leaf(name), tree.leaf(name)):
                if path is not None:
                    found.pop(path, None)
        return found


def per_leaf(
    fabric: Fabric, key: Hashable, read: Read[T], most: int | None = None
) -> Mapping[Path, T]:
    """What `read` derives from each leaf; with `most`, from those known and so many more.

    `key` names `read` and all that it goes by.
    """
    known: PerLeaf[T] | None = _known(fabric, key)
    if known is None:
        known = PerLeaf(fabric.tree, {})
    elif known.whole and not known.changed:
        return known.found
    found = known.still(fabric.tree)
    for path in [p for p in fabric.leaves if p not in found][:most]:
        found[path] = read(fabric, path)
    kept: PerLeaf[T] = PerLeaf(fabric.tree, found)
    fabric.remember(key, kept)
    return found


def read_some(fabric: Fabric, key: Hashable, read: Read[T], most: int) -> bool:
    """Read up to `most` leaves for `per_leaf`; True when there was nothing to do, at no cost.

    So that a caller can let others run meanwhile. Nothing is to be done where all leaves were read
    and few nodes changed since: `FEW`.
    """
    known: PerLeaf[T] | None = _known(fabric, key)
    if known is not None and known.whole and len(known.changed) <= FEW:
        return True
    per_leaf(fabric, key, read, most)
    return False


def _known(fabric: Fabric, key: Hashable) -> PerLeaf[T] | None:
    """What this view, or one that it was made from, knows."""
    changed: frozenset[str] = frozenset()
    view: Fabric | None = fabric
    while view is not None:
        found = view.memo.get(key)
        if isinstance(found, PerLeaf):
            return found.after(changed) if changed else found
        changed |= view.changed
        view = view.parent
    return None
