"""What the ratio loop looks at: scenarios with counts, and which of their instances are measured.

A tick comes every few seconds, and most of what it looks at is as it was at the last one. So each
answer is kept with the objects that it was read from, and found again once one of them is another;
and where caches took in nothing, no object is looked at. In steps, between which the event
loop runs. Neighbour: `ratio_loop` decides.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from pdserve.api import PDService, Scenario, ScenarioGroup
from pdserve.controllers.shared.caches import BY_SERVICE, owned_by
from pdserve.controllers.shared.context import OperatorContext
from pdserve.controllers.shared.group_view import view_group
from pdserve.controllers.shared.parsed import parsed
from pdserve.controllers.shared.skipped import read_each
from pdserve.desired.group_wanted import ScenarioGroupView
from pdserve.desired.service_desired import acting_counts
from pdserve.groups.instances import InstanceObs
from pdserve.kube.resource import Object
from pdserve.ratio.learn import Start
from pdserve.ratio.types import Counts
from pdserve.telemetry.source import LiveInstances, ScenarioKey

AT_ONCE: Final = 16
"""Scenarios that are looked at in one step of the event loop."""
_CLOCK_STEP: Final = 1e-6
"""Seconds."""
_NEVER: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Subject:
    """One scenario whose counts are in question."""

    service: PDService
    scenario: Scenario
    obj: Object
    group: ScenarioGroup
    counts: Counts

    @property
    def key(self) -> ScenarioKey:
        """How the metrics source calls it."""
        meta = self.group.metadata
        return ScenarioKey(meta.namespace, self.group.spec.service, self.group.spec.scenario)


@dataclass(frozen=True, slots=True)
class SeenInstances:
    """Instances of one scenario."""

    live: LiveInstances
    """Those that are measured, and the gateways."""
    starts: tuple[Start, ...]
    """How long each instance took from its pods' creation to Ready."""


@dataclass(frozen=True, slots=True)
class _Listed:
    service: PDService
    owned: tuple[Object, ...]
    found: list[Subject]


@dataclass(frozen=True, slots=True)
class _Seen:
    pods: Sequence[object]
    """Of the instances and of the gateways."""
    until: float
    """When another instance has been ready for a whole window (seconds since the epoch)."""
    seen: SeenInstances


class Subjects:
    """See the module. One event loop."""

    def __init__(self, context: OperatorContext, window: float) -> None:
        """`window`: seconds that an instance must have been ready for before it is measured."""
        self._context = context
        self._window = window
        self._listed: dict[str, _Listed] = {}
        self._seen: dict[ScenarioKey, _Seen] = {}
        self._subjects: dict[ScenarioKey, Subject] = {}
        self._at: tuple[int, ...] = ()
        """What `_subjects` were read at: counts of changes; none where some could not be read."""
        self._live: dict[ScenarioKey, LiveInstances] = {}
        self._live_at: tuple[int, ...] = ()
        self._live_until = 0.0

    async def listed(self) -> Mapping[ScenarioKey, Subject]:
        """All scenarios that are this operator's. Not to be changed."""
        caches, scope = self._context.caches, self._context.scope
        at = caches.services.changes, caches.groups.changes, scope.changes
        if at == self._at:
            return self._subjects
        mine = [s for s in caches.services.list() if not scope.leaves(s["metadata"]["namespace"])]
        found: dict[ScenarioKey, Subject] = {}
        uids: set[str] = set()
        services = read_each(mine, partial(parsed, PDService), caches.skipped, "ratio")
        for number, service in enumerate(services):
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
            uids.add(service.metadata.uid)
            found.update((subject.key, subject) for subject in self.of_service(service))
        self._seen = {key: seen for key, seen in self._seen.items() if key in found}
        self._listed = {uid: known for uid, known in self._listed.items() if uid in uids}
        self._subjects, self._live_at = found, ()
        self._at = at if len(self._listed) == len(mine) else ()
        return found

    async def live(
        self, subjects: Mapping[ScenarioKey, Subject]
    ) -> Mapping[ScenarioKey, LiveInstances]:
        """The instances to measure of what `listed` gave; what cannot be read is left out."""
        at, now = (self._context.caches.pods.changes, *self._at), self._context.now()
        if at == self._live_at and now < self._live_until:
            return self._live
        found: dict[ScenarioKey, LiveInstances] = {}
        for number, (key, subject) in enumerate(subjects.items()):
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
            try:
                found[key] = self.instances(subject).live
            except Exception as error:
                self._context.skipped(subject.obj, "ratio", error)
        whole = self._at and len(found) == len(subjects)
        self._live, self._live_at = found, at if whole else ()
        self._live_until = min((self._seen[key].until for key in found), default=_NEVER)
        return found

    def of_service(self, service: PDService) -> list[Subject]:
        """The scenarios of a PDService; those that cannot be read are skipped and told."""
        caches = self._context.caches
        owned = owned_by(caches.groups, service.metadata)
        known = self._listed.pop(service.metadata.uid, None)
        if known is not None and known.service is service and _same(known.owned, owned):
            self._listed[service.metadata.uid] = known
            return known.found
        scenarios = {s.name: s for s in service.spec.scenarios}
        read = list(
            read_each(owned, partial(_subject, service, scenarios), caches.skipped, "ratio")
        )
        found = [subject for subject in read if subject is not None]
        if len(read) == len(owned):
            self._listed[service.metadata.uid] = _Listed(service, owned, found)
        return found

    def instances(self, subject: Subject) -> SeenInstances:
        """Its instances that are to be measured, and how they started."""
        caches, meta = self._context.caches, subject.group.metadata
        gateways = caches.pods.by_index(BY_SERVICE, (meta.namespace, subject.group.spec.service))
        pods = (*owned_by(caches.pods, meta), *gateways)
        now, key = self._context.now(), subject.key
        known = self._seen.get(key)
        if known is not None and now < known.until and _same(known.pods, pods):
            return known.seen
        view = view_group(self._context, subject.group)
        # Pods ready for a whole window: the first batches of an instance are not typical.
        ready = [i for i in view.instances if i.ready_since is not None and not i.terminating]
        warm = [i for i in ready if _warm_at(i, self._window) <= now]
        live = LiveInstances(
            gateways=frozenset(p.name for p in gateways if p.ready.true and not p.deleting),
            prefill=frozenset(i.name for i in warm if i.role == "prefill"),
            decode=frozenset(i.name for i in warm if i.role == "decode"),
        )
        until = min((_warm_at(i, self._window) for i in ready if i not in warm), default=_NEVER)
        seen = SeenInstances(live, _starts(view))
        self._seen[key] = _Seen(pods, until - _CLOCK_STEP, seen)
        return seen


def _subject(service: PDService, scenarios: dict[str, Scenario], obj: Object) -> Subject | None:
    group = parsed(ScenarioGroup, obj)
    scenario = scenarios.get(group.spec.scenario)
    counts = None if scenario is None else acting_counts(group, scenario, owned=True)
    if scenario is None or counts is None:
        return None
    return Subject(service, scenario, obj, group, counts)


def _same(known: Sequence[object], now: Sequence[object]) -> bool:
    """The very same objects: caches replace an object that changed."""
    return len(known) == len(now) and all(map(operator.is_, known, now))


def _warm_at(instance: InstanceObs, window: float) -> float:
    return _NEVER if instance.ready_since is None else instance.ready_since + window


def _starts(view: ScenarioGroupView) -> tuple[Start, ...]:
    return tuple(
        Start(i.created, i.ready_since - i.created)
        for i in view.instances
        if i.ready_since is not None and i.restarts == 0 and not i.terminating
    )
