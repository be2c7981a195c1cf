"""Which parts of an object a cache keeps as JSON.

What is left out also wakes no handler: an update that changes nothing else is no change. Objects
of which little is read are better kept as values (`cache.ViewCache`).
"""

from __future__ import annotations

from collections.abc import Callable

from pdserve.kube.resource import Object

Prune = Callable[[Object], Object | None]
"""Maps an object to what is kept of it, or None to keep nothing (as if it did not exist)."""


def without_managed_fields(obj: Object) -> Object:
    """Keep all but `metadata.managedFields`, which is often half of a small object."""
    meta = obj["metadata"]
    if "managedFields" not in meta:
        return obj
    return {**obj, "metadata": {k: v for k, v in meta.items() if k != "managedFields"}}
