"""Which ScenarioGroups a change of any node may concern: those that are not settled.

A settled one has all it wants and waits for nothing (`Plan.settled`), so only the nodes of its own
instances mean anything to it. Kept in memory: after a start every ScenarioGroup counts as not
settled until it was looked at. Neighbours: `triggers` asks, the reconciler of ScenarioGroups tells.
"""

from __future__ import annotations

from pdserve.controllers.shared.caches import Caches
from pdserve.kube.held import ChangeType
from pdserve.kube.resource import Object, ObjectKey


class Unsettled:
    """See the module. Make one per set of caches, before they run; one event loop."""

    def __init__(self, caches: Caches) -> None:
        self._keys: set[ObjectKey] = set()
        caches.groups.on_change(self._group)

    @property
    def groups(self) -> tuple[ObjectKey, ...]:
        """Those not settled, by namespace and name."""
        return tuple(sorted(self._keys))

    def looked_at(self, key: ObjectKey, *, settled: bool) -> None:
        """What the newest look at a ScenarioGroup came to; False when one begins."""
        if settled:
            self._keys.discard(key)
        else:
            self._keys.add(key)

    def _group(self, _event: ChangeType, old: Object | None, new: Object | None) -> None:
        for obj in (old, new):
            if obj is not None and (old is None or new is None):
                meta = obj["metadata"]
                key = ObjectKey(meta["namespace"], meta["name"])
                self.looked_at(key, settled=new is None)
