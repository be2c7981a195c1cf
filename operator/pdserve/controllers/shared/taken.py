"""Counts in the fabrics what no pod in the cache holds, and what is not free: promises and claims.

Every plan asks for a fabric, and thousands of ScenarioGroups may have promises or claims. So each
one's part is remembered, and found again only when something changed that it is made of.
Neighbours: `promises` and `device_claims` know, `fabrics` counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pdserve.controllers.shared.caches import Caches
from pdserve.controllers.shared.device_claims import Claims
from pdserve.controllers.shared.fabrics import Fabrics
from pdserve.controllers.shared.promises import Promises
from pdserve.kube.held import ChangeType
from pdserve.kube.resource import Object, ObjectKey, key_of
from pdserve.placement import GroupRequest
from pdserve.topology import Fabric, PodView, Reservation
from pdserve.topology.spec import TreeSpec

STEP_GROUPS: Final = 100
"""ScenarioGroups whose parts are found in one step: some milliseconds."""


class Taken:
    """See the module. Make one per set of caches, before they run; one event loop."""

    def __init__(
        self, caches: Caches, fabrics: Fabrics, claims: Claims, promises: Promises
    ) -> None:
        self._caches = caches
        self._fabrics = fabrics
        self._claims = claims
        self._promises = promises
        self._parts: dict[ObjectKey, _Part] = {}
        self._group_of: dict[ObjectKey, ObjectKey] = {}
        """By pod: the ScenarioGroup whose promises or claims name it."""
        self._changed: set[ObjectKey] = set()
        """ScenarioGroups whose part may be another now."""
        caches.groups.on_change(self._group)
        caches.pods.on_change(self._pod)
        claims.on_change(self._changed.add)
        promises.on_change(self._changed.add)

    def fabric(self, spec: TreeSpec) -> Fabric:
        """The RoCEDomain's fabric with everything counted that is not free."""
        # Failed promises end by the passing of time.
        for key in sorted(self._changed | self._promises.failed()):
            self._count(key)
        self._changed.clear()
        return self._fabrics.of(spec)

    async def prepare(self, spec: TreeSpec, requests: Iterable[GroupRequest]) -> None:
        """Let `fabric` find little to do, and placement of `requests` in it; see `Fabrics`."""
        await self._count_in_steps()
        await self._fabrics.prepare(spec, requests)

    async def prepare_summary(self, spec: TreeSpec) -> None:
        """The same for `topology.summarise`."""
        await self._count_in_steps()
        await self._fabrics.prepare_summary(spec)

    async def _count_in_steps(self) -> None:
        while len(self._changed) > STEP_GROUPS:
            for key in sorted(self._changed)[:STEP_GROUPS]:
                self._changed.discard(key)
                self._count(key)
            await asyncio.sleep(0)

    def everything_changed(self) -> None:
        """Other operators took or left namespaces: claims of the groups there count otherwise."""
        self._changed.update(self._parts)

    def _count(self, key: ObjectKey) -> None:
        """Find the part of one ScenarioGroup again.

        What is promised to a pod counts until the cache shows the pod. A claim counts while its pod
        holds nothing, and not beside a promise to it.
        """
        pods, promised = self._caches.pods, self._promises.of(key)
        claimed = self._claims.reservations(key, self._caches)
        asked = {r.pod for r in promised}
        held = {r.pod for r in claimed if _holds(pods.get(r.pod, key.namespace))}
        now = _Part(
            (
                *(r for r in promised if pods.get(r.pod, key.namespace) is None),
                *(r for r in claimed if r.pod not in asked and r.pod not in held),
            ),
            frozenset(r.pod for r in (*promised, *claimed)),
        )
        before = self._parts.pop(key, _NONE)
        if now.pods:
            self._parts[key] = now
        if now.taken != before.taken:
            self._fabrics.take(before.taken, now.taken)
        for pod in before.pods - now.pods:
            self._group_of.pop(ObjectKey(key.namespace, pod), None)
        for pod in now.pods - before.pods:
            self._group_of[ObjectKey(key.namespace, pod)] = key

    def _group(self, _event: ChangeType, old: Object | None, new: Object | None) -> None:
        obj = new if new is not None else old
        if obj is not None:
            self._changed.add(key_of(obj))

    def _pod(self, _event: ChangeType, old: PodView | None, new: PodView | None) -> None:
        pod = new if new is not None else old
        if pod is not None:
            group = self._group_of.get(ObjectKey(pod.namespace, pod.name))
            if group is not None:
                self._changed.add(group)


@dataclass(frozen=True, slots=True)
class _Part:
    """What one ScenarioGroup's promises and claims take."""

    taken: tuple[Reservation, ...] = ()
    pods: frozenset[str] = frozenset()
    """Names of pods on which it depends whether they count."""


_NONE = _Part()


def _holds(pod: PodView | None) -> bool:
    return pod is not None and bool(pod.devices)
