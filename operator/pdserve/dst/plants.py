"""Faults put back on purpose: schedules that miss one of them would miss new faults too.

A plant replaces a function of the operator while it is `planted`. Most are faults that this
operator once had, as they were seen in clusters. The schedules of `seeds` seeds from `first` on
must find it. `pdserve dst --plants` lists them, `--plant NAME` runs schedules with one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from pdserve.api import ObjectMeta, ScenarioGroup
from pdserve.controllers import worker
from pdserve.controllers.group import scenariogroup
from pdserve.controllers.ratio import subjects
from pdserve.controllers.service import pdservice, route_writer, seen
from pdserve.controllers.shared import caches, clock, device_claims, group_view
from pdserve.controllers.shared.context import OperatorContext
from pdserve.desired import decisions
from pdserve.desired.compare import controller_uid
from pdserve.dst.world_engines import Engines, SimulatedEngine
from pdserve.groups import (
    health,
    linking,
    plan,
    removal,
    repairs,
    resize,
    routable,
    scale,
    tables,
)
from pdserve.groups.instances import InstanceObs
from pdserve.groups.types import DeletePod, Observation
from pdserve.groups.view import GroupView, PlanDraft
from pdserve.kube.cache import ViewCache
from pdserve.kube.held import K
from pdserve.kube.resource import PODS, ObjectKey
from pdserve.kube.workqueue import QueueKey
from pdserve.ratio.types import Counts
from pdserve.terms import Role
from pdserve.terms.json import JsonMap
from pdserve.topology import PodView
from pdserve.wire import names
from pdserve.wire.peers import PeerTable

Change = tuple[object, str, object]
"""Module or class, name, and what stands there instead."""


@dataclass(frozen=True, slots=True)
class Plant:
    """One fault: what it is, which invariants may show it, and how it is put in."""

    name: str
    fault: str
    numbers: tuple[int, ...]
    changes: Callable[[], tuple[Change, ...]]
    first: int = 0
    seeds: int = 40


@contextmanager
def planted(plant: Plant) -> Iterator[None]:
    """Put the fault in; take it out at the end."""
    former: list[Change] = []
    try:
        for owner, name, value in plant.changes():
            former.append((owner, name, vars(owner)[name]))
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(former):
            setattr(owner, name, value)


def _everywhere(name: str, value: object, *modules: ModuleType) -> tuple[Change, ...]:
    """One function by its name in all modules that use it."""
    return tuple((module, name, value) for module in modules)


def _owners_by_uid() -> tuple[Change, ...]:
    def owned_by(cache: ViewCache[K], owner: ObjectMeta) -> tuple[K, ...]:
        return tuple(kept for kept in cache.list() if _controller(kept) == owner.uid)

    return _everywhere("owned_by", owned_by, group_view, pdservice, route_writer, seen, subjects)


def _controller(kept: object) -> str | None:
    """Uid of the controller of what a cache keeps: a view of a Pod, or the object as it is."""
    if isinstance(kept, PodView):
        return None if kept.owner is None else kept.owner.uid
    return controller_uid(kept) if isinstance(kept, Mapping) else None


def _counts_by_edit() -> tuple[Change, ...]:
    def acting_counts(group: ScenarioGroup, _scenario: object, *, owned: bool) -> Counts | None:
        return decisions.live_counts(group)

    return _everywhere("acting_counts", acting_counts, scenariogroup)


def _outdated_unrepaired() -> tuple[Change, ...]:
    def stored_revisions(_caches: object, _group: object) -> JsonMap:
        return {}

    return _everywhere("stored_revisions", stored_revisions, group_view)


def _startup_until_ready() -> tuple[Change, ...]:
    def startup(pod: PodView, now: float, limits: object, since: object) -> health.HealthVerdict:
        if pod.ready.true:
            return health.HealthVerdict()
        age = now - pod.created
        if age >= 20.0:
            return health.HealthVerdict(
                "StartupDeadline", f"not Ready {age:.0f} s after its creation"
            )
        return health.HealthVerdict(recheck_after=20.0 - age)

    return ((health, "_startup", startup),)


def _outage_is_silence() -> tuple[Change, ...]:
    def of(self: clock.NodeSilence, node: str) -> float | None:
        since = self._since.get(node)
        return None if since is None else 3600.0

    return ((clock.NodeSilence, "of", of),)


def _drain_unheeded() -> tuple[Change, ...]:
    def finished(_group: object, _instance: object, _observation: object) -> bool:
        return True

    return ((removal, "finished", finished), (tables, "finished", finished))


def _routes_unlinked() -> tuple[Change, ...]:
    def is_routable(instance: InstanceObs, table: PeerTable | None) -> bool:
        return (
            not instance.terminating and instance.fault is None
            and routable.peer_entry(instance, table) is not None
        )  # fmt: skip

    return _everywhere("is_routable", is_routable, routable)


def _restarts_unseen() -> tuple[Change, ...]:
    def is_routable(instance: InstanceObs, table: PeerTable | None) -> bool:
        return (
            not instance.terminating and instance.fault is None
            and all(m.linked_container is not None for m in instance.members)
            and (instance.ready or not instance.linked)
            and routable.peer_entry(instance, table) is not None
        )  # fmt: skip

    def lost_links(_group: object, _instance: object) -> str | None:
        return None

    links = Engines.ready

    def ready(self: Engines, engine: SimulatedEngine) -> bool:
        return engine.restarted_at == -math.inf and links(self, engine)

    return (
        *_everywhere("is_routable", is_routable, routable),
        (linking, "_lost_links", lost_links),
        (Engines, "ready", ready),
    )


def _routes_the_dead() -> tuple[Change, ...]:
    def is_routable(instance: InstanceObs, table: PeerTable | None) -> bool:
        return instance.pod_ip is not None and routable.peer_entry(instance, table) is not None

    return _everywhere("is_routable", is_routable, routable)


def _no_drain() -> tuple[Change, ...]:
    def retire(
        _group: object, instance: InstanceObs, reason: str, _observation: object, draft: PlanDraft
    ) -> None:
        if not instance.terminating:
            draft.act(DeletePod(instance.name, instance.uid, reason), reason)

    return _everywhere("retire", retire, removal, scale, resize)


def _serving_goes_first() -> tuple[Change, ...]:
    def next_excess(
        live: Sequence[GroupView], observation: Observation, *_: object
    ) -> GroupView | None:
        if len(live) <= observation.wanted.replicas:
            return None
        return min(live, key=lambda g: (not g.serving, g.index))

    return ((scale, "_next_excess", next_excess),)


def _rolls_all_at_once() -> tuple[Change, ...]:
    original = scale.scale_groups

    def scale_groups(
        groups: Sequence[GroupView], observation: Observation, draft: PlanDraft
    ) -> tuple[GroupView, ...]:
        revision = observation.wanted.revision
        for group in groups:
            if group.revision != revision and not group.gone:
                for instance in group.members:
                    removal.retire(group, instance, "outdated", observation, draft)
        return original(groups, observation, draft)

    return ((plan, "scale_groups", scale_groups),)


def _replaced_twice() -> tuple[Change, ...]:
    original = resize._vacancies

    def vacancies(
        group: GroupView, role: Role, short: int, observation: Observation, draft: PlanDraft
    ) -> tuple[resize.Vacancy, ...]:
        found = original(group, role, short, observation, draft)
        lost = any(vacancy.replaces is not None for vacancy in found)
        return original(group, role, short + 1, observation, draft) if lost else found

    return ((resize, "_vacancies", vacancies),)


def _claims_forgotten() -> tuple[Change, ...]:
    def nothing(*_: object, **__: object) -> tuple[object, ...]:
        return ()

    return (
        (plan, "kept_claims", nothing),
        (device_claims.Claims, "of", nothing),
        (device_claims.Claims, "reservations", nothing),
        (device_claims.Claims, "ahead", nothing),
    )


def _slow_repair() -> tuple[Change, ...]:
    def delay(failures: int) -> float:
        return 45.0 * failures

    return ((repairs, "_delay", delay),)


def _flaps_are_losses() -> tuple[Change, ...]:
    original = health.HealthLimits

    def limits(*args: Any, **kwargs: Any) -> health.HealthLimits:
        made = original(*args, **kwargs)
        return dataclasses.replace(made, node_suspect=1.0)

    return _everywhere("HealthLimits", functools.wraps(original)(limits), group_view)


def _errors_end_the_operator() -> tuple[Change, ...]:
    async def reconcile(context: OperatorContext, key: QueueKey) -> None:
        after = await worker.RECONCILERS[key.kind](context, ObjectKey(key.namespace, key.name))
        if after is not None:
            context.queue.add_after(key, max(after, worker.SHORTEST_WAIT))

    return ((worker, "reconcile", reconcile),)


def _owners_by_label() -> tuple[Change, ...]:
    original = caches.owned_by

    def owned_by(cache: ViewCache[K], owner: ObjectMeta) -> tuple[K, ...]:
        if cache.resource != PODS:
            return original(cache, owner)
        return tuple(
            pod for pod in cache.list()
            if isinstance(pod, PodView) and names.LABEL_ROLE in pod.labels
            and pod.labels.get(names.LABEL_SERVICE, "") != ""
            and owner.name == "-".join((pod.labels[names.LABEL_SERVICE],
                                        pod.labels.get(names.LABEL_SCENARIO, "")))
        )  # fmt: skip

    return _everywhere("owned_by", owned_by, group_view)


PLANTS: Final = (
    Plant("owners-by-uid", "owner look-ups ignore the namespace", (9, 15, 13, 0, 4),
          _owners_by_uid, first=68),
    Plant("counts-by-edit", "an edit of a ScenarioGroup's counts is acted upon", (13, 3, 4, 0),
          _counts_by_edit, first=34),
    Plant("outdated-unrepaired", "groups of an old revision are not repaired", (0, 3, 10),
          _outdated_unrepaired, first=210),
    Plant("startup-until-ready", "the startup deadline runs until Ready, peers included", (13, 0),
          _startup_until_ready, first=5),
    Plant("outage-is-silence", "time without the API server counts as a node's silence", (4, 13),
          _outage_is_silence, first=2),
    Plant("drain-unheeded", "a drained instance is deleted at once", (5,),
          _drain_unheeded, first=105),
    Plant("routes-unlinked", "instances are routed before they link", (1,),
          _routes_unlinked, first=10),
    Plant("restarts-unseen", "what restarts in place and never links again stays routed", (1,),
          _restarts_unseen, first=5),
    Plant("routes-the-dead", "instances that end stay routed", (1,), _routes_the_dead, first=10),
    Plant("no-drain", "instances are deleted instead of drained", (5,), _no_drain, first=77),
    Plant("serving-goes-first", "of too many groups the serving one goes", (3, 7, 13),
          _serving_goes_first, first=20),
    Plant("rolls-all-at-once", "a new revision drains every old group", (3, 13),
          _rolls_all_at_once),
    Plant("claims-forgotten", "devices freed by a repair belong to no group", (0, 10, 13),
          _claims_forgotten, first=267),
    Plant("errors-end-the-operator", "an error of the API server ends the process", (10,),
          _errors_end_the_operator, first=16),
    Plant("owners-by-label", "pods are found by their labels", (0, 9, 13, 15),
          _owners_by_label, first=516),
    Plant("replaced-twice", "a lost instance gets two successors, one is given up again", (4,),
          _replaced_twice),
    Plant("slow-repair", "the first repair waits 45 s", (10,), _slow_repair, first=18),
    Plant("flaps-are-losses", "a node NotReady for a second is lost", (4, 13),
          _flaps_are_losses, first=2),
)  # fmt: skip


def plant_of(name: str) -> Plant:
    """The planted fault of this name.

    Raises:
        KeyError: there is none; the message lists the known ones.
    """
    for plant in PLANTS:
        if plant.name == name:
            return plant
    raise KeyError(f"no plant {name!r}; there are {', '.join(p.name for p in PLANTS)}")
