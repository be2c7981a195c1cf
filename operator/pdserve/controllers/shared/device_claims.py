"""Devices that instances left to their P/D groups, between a pod's end and the group's status.

`groups.claims` decides what a group keeps, and status stores it. But a pod may vanish before its
group is reconciled, or while no operator runs. Until the next reconciliation of its group the
claim is held here. It is noted when the cache drops the pod; after a start it is found in the peer
tables, which name every instance that served. Every placement counts both, so no other group can
take the devices first. Which groups wait for devices is noted here too, for the order among them.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from pdserve.api import ScenarioGroup
from pdserve.controllers.shared.caches import Caches
from pdserve.controllers.shared.scope import Scope
from pdserve.desired.claim_entries import claims_of, from_json
from pdserve.desired.group_wanted import ScenarioGroupView
from pdserve.desired.pod_demand import demand_of
from pdserve.groups.claims import newest, recalled, reservations, with_room
from pdserve.groups.types import DeviceClaim
from pdserve.kube.held import ChangeType
from pdserve.kube.resource import Object, ObjectKey
from pdserve.placement import GroupRequest
from pdserve.terms import ROLES
from pdserve.topology import Fabric, PodView, Reservation
from pdserve.wire import names

MOST_AHEAD: Final = 100
"""Waiting ScenarioGroups for which a plan looks for a place before its own."""


@dataclass(frozen=True, slots=True, order=True)
class Rank:
    """Order among groups that wait for devices: the smaller comes first."""

    priority: int
    """Position of its scenario in its PDService."""
    created: str
    namespace: str
    name: str


class Claims:
    """Claims of all ScenarioGroups that status does not show yet. One event loop."""

    def __init__(self, scope: Scope) -> None:
        """`scope`: groups that are left to another operator have no claims here."""
        self._scope = scope
        self._lost: dict[ObjectKey, dict[str, DeviceClaim]] = {}
        self._waiting: dict[ObjectKey, tuple[str, Rank, GroupRequest]] = {}
        self._told: list[Callable[[ObjectKey], None]] = []

    def on_change(self, tell: Callable[[ObjectKey], None]) -> None:
        """Call `tell` with a ScenarioGroup whose claims are others now, status left aside."""
        self._told.append(tell)

    def _changed(self, key: ObjectKey) -> None:
        for tell in self._told:
            tell(key)

    # --- noticing --------------------------------------------------------------------------

    def pod_changed(self, event: ChangeType, old: PodView | None, new: PodView | None) -> None:
        """Cache handler of Pods: note the devices of an instance that holds them no more."""
        if old is None or not old.devices:
            return
        if event == "DELETED" or (new is not None and not new.devices):
            self._note(old)

    def group_changed(self, event: ChangeType, old: Object | None, _new: Object | None) -> None:
        """Cache handler of ScenarioGroups: forget one that is gone."""
        if event == "DELETED" and old is not None:
            key = ObjectKey(old["metadata"]["namespace"], old["metadata"]["name"])
            self._lost.pop(key, None)
            self._waiting.pop(key, None)
            self._changed(key)

    def recall(self, view: ScenarioGroupView, fabric: Callable[[], Fabric | None]) -> None:
        """Note what instances left that ended, or that a table names and that are gone.

        Called after a start, before anything is planned. `fabric`: what is free; None where that
        is not known.
        """
        group = view.group
        key = ObjectKey(group.metadata.namespace, group.metadata.name)
        noted = self._lost.get(key, {})
        found = recalled(
            (*claims_of(group), *noted.values()), view.tables, view.instances,
            lambda revision, role: demand_of(view.at(revision), role, revision).takes,
        )  # fmt: skip
        tree = fabric() if found else None
        found = found if tree is None else with_room(found, tree)
        if found:
            self._lost[key] = {**found, **noted}
            self._changed(key)

    def _note(self, pod: PodView) -> None:
        role = pod.labels.get(names.LABEL_ROLE)
        index = pod.labels.get(names.LABEL_GROUP_INDEX, "")
        if pod.owner is None or pod.owner.kind != "ScenarioGroup":
            return
        if names.ANNOTATION_DRAIN in pod.annotations:
            return  # planned: who planned it claimed what is to be kept
        if pod.scheduled.reason == "Unschedulable":
            return  # it never got them
        if role not in ROLES or not index.isdigit() or not pod.place:
            return
        claim = DeviceClaim(
            pod.name, pod.annotations.get(names.ANNOTATION_LEADER) or pod.uid,
            names.slot_of(pod.name), role, int(index), pod.place, tuple(pod.requested.items()),
        )  # fmt: skip
        key = ObjectKey(pod.namespace, pod.owner.name)
        self._lost.setdefault(key, {})[claim.pod] = claim
        self._changed(key)

    # --- asking ----------------------------------------------------------------------------

    def of(self, group: ScenarioGroup) -> tuple[DeviceClaim, ...]:
        """All claims of one ScenarioGroup, by slot, those of one slot by age."""
        key = ObjectKey(group.metadata.namespace, group.metadata.name)
        found = newest(claims_of(group), self._lost.get(key, {}).values())
        return tuple(sorted(found, key=lambda c: c.slot))

    def noted(self, group: ScenarioGroup) -> tuple[DeviceClaim, ...]:
        """Those that were noted here, for `decided`."""
        key = ObjectKey(group.metadata.namespace, group.metadata.name)
        return tuple(self._lost.get(key, {}).values())

    def decided(self, group: ScenarioGroup, noted: Iterable[DeviceClaim]) -> None:
        """Status of the group now says what is kept of `noted`.

        What was noted later is kept, also of a pod whose claim a plan has seen before.
        """
        key = ObjectKey(group.metadata.namespace, group.metadata.name)
        left = self._lost.get(key, {})
        for claim in noted:
            if left.get(claim.pod) is claim:
                del left[claim.pod]
        if not left:
            self._lost.pop(key, None)
        self._changed(key)

    def reservations(self, key: ObjectKey, caches: Caches) -> tuple[Reservation, ...]:
        """What all claims of one ScenarioGroup take of the fabric, of pods that hold it too."""
        obj = caches.groups.get(key.name, key.namespace)
        # The last pods of a ScenarioGroup may end after it: no instance is left to come back.
        if obj is None or self._scope.leaves(key.namespace):
            self._lost.pop(key, None)
        listed = ((obj or {}).get("status") or {}).get("claims") or ()
        told = [c for c in map(from_json, listed) if c is not None]
        return reservations(newest(told, self._lost.get(key, {}).values()))

    # --- waiting ---------------------------------------------------------------------------

    def waits(self, key: ObjectKey, domain: str, rank: Rank, request: GroupRequest | None) -> None:
        """A ScenarioGroup waits for a place for `request`, or (None) waits no more."""
        if request is None:
            self._waiting.pop(key, None)
        else:
            self._waiting[key] = (domain, rank, request)

    def waiting(self) -> tuple[ObjectKey, ...]:
        """Who waits, the first one first."""
        return tuple(sorted(self._waiting, key=lambda key: self._waiting[key][1]))

    def ahead(self, domain: str, rank: Rank) -> tuple[GroupRequest, ...]:
        """What those wait for who come before `rank`, the first one first: `MOST_AHEAD` at most."""
        found = (
            (other, request)
            for where, other, request in self._waiting.values()
            if where == domain and other < rank and not self._scope.leaves(other.namespace)
        )
        first = heapq.nsmallest(MOST_AHEAD, found, key=lambda entry: entry[0])
        return tuple(request for _, request in first)
