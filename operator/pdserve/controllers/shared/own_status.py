"""Takes in the answer to a status write without the pass that the change would cause.

A reconciler decides from the world and writes what it found into the status of its own object. That
it wrote it is no reason to look again: nothing but its own words has changed. Other objects that
follow this status are woken as by any change.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Final

from pdserve.kube.cache import Cache
from pdserve.kube.resource import Object
from pdserve.kube.workqueue import QueueKey, WorkQueue

_USER_FIELDS: Final = ("generation", "annotations", "labels", "deletionTimestamp", "uid")
"""Fields of the metadata that change with what a user changes."""


def observe_own_status(
    queue: WorkQueue, key: QueueKey, cache: Cache, before: Object, live: Object
) -> None:
    """Take `live`, the answer to a status write, into the cache.

    `before` is what the pass of `key` decided from. Where the answer also carries a change by a
    user the pass is not suppressed: the watch event of that version finds the object in the cache
    and reaches no handler.
    """
    old, new = before["metadata"], live["metadata"]
    by_user = any(old.get(field) != new.get(field) for field in _USER_FIELDS)
    with nullcontext() if by_user else queue.ignoring(key):
        cache.observe(live)
