"""Gauges of the objects the operator looks after: instances, counts, free devices, conditions.

They are computed from the caches at each scrape, in one pass over our three kinds and without a
request; the series of a deleted object go with it. Only the leader reports them, so that a sum over
the operator's pods counts each object once. Objects that cannot be read have no series: `skipped`
reports them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, TypeVar

from pdserve.api import InvalidObjectError, PDService, RoCEDomain, ScenarioGroup
from pdserve.controllers.shared.caches import Caches
from pdserve.controllers.shared.parsed import parsed
from pdserve.controllers.shared.scope import Scope
from pdserve.desired import decisions
from pdserve.exposition import Gauge, Registry
from pdserve.kube.cache import Cache

K = TypeVar("K", PDService, ScenarioGroup, RoCEDomain)
Values = dict[tuple[str, ...], float]
_SCENARIO: Final = ("namespace", "service", "scenario")
OF: Final = ("groups", "prefill", "decode")
_STATUS: Final[Mapping[str, float]] = {"True": 1.0, "False": 0.0}
"""Value of a condition; any other status is -1."""


class ObjectGauges:
    """See the module."""

    def __init__(self, registry: Registry, caches: Caches) -> None:
        self._caches = caches
        self._scope: Scope | None = None
        self._wanted = registry.gauge(
            "pdserve_operator_instances_wanted",
            "Instances that the counts in force ask for.",
            (*_SCENARIO, "role"),
        )
        self._ready = registry.gauge(
            "pdserve_operator_instances_ready",
            "Instances linked, ready and not draining.",
            (*_SCENARIO, "role"),
        )
        self._counts = registry.gauge(
            "pdserve_operator_counts",
            "Counts in force: P/D groups, and prefill and decode instances in each.",
            (*_SCENARIO, "of"),
        )
        self._free = registry.gauge(
            "pdserve_operator_free_devices",
            "Healthy devices of a RoCEDomain that no pod holds.",
            ("domain", "resource"),
        )
        self._conditions = registry.gauge(
            "pdserve_operator_condition",
            "Conditions of our objects: 1 True, 0 False, -1 Unknown.",
            ("kind", "namespace", "name", "type"),
        )
        registry.on_collect(self._collect)

    @contextmanager
    def told(self, scope: Scope) -> Iterator[None]:
        """While inside, this process leads and reports all that it does not leave to others."""
        self._scope = scope
        try:
            yield
        finally:
            self._scope = None

    def _collect(self) -> None:
        wanted: Values = {}
        ready: Values = {}
        counts: Values = {}
        free: Values = {}
        conditions: Values = {}
        if self._scope is not None:
            for group in self._objects(ScenarioGroup, conditions):
                of_group(group, wanted, ready, counts)
            for domain in self._objects(RoCEDomain, conditions):
                for left in domain.status.free:
                    free[domain.metadata.name, left.resource] = left.devices
            deque(self._objects(PDService, conditions), maxlen=0)
        _put(self._wanted, wanted)
        _put(self._ready, ready)
        _put(self._counts, counts)
        _put(self._free, free)
        _put(self._conditions, conditions)

    def _objects(self, kind: type[K], conditions: Values) -> Iterator[K]:
        """Every readable object of a kind; its conditions are put into `conditions`."""
        caches: dict[str, Cache] = {
            "PDService": self._caches.services,
            "ScenarioGroup": self._caches.groups,
            "RoCEDomain": self._caches.domains,
        }
        for obj in caches[kind.info.name].list():
            try:
                model = parsed(kind, obj)
            except InvalidObjectError:
                continue
            meta = model.metadata
            if self._scope is None or self._scope.leaves(meta.namespace or ""):
                continue
            for held in model.status.conditions:
                key = (kind.info.name, meta.namespace or "", meta.name, held.type)
                conditions[key] = _STATUS.get(held.status, -1.0)
            yield model


def of_group(group: ScenarioGroup, wanted: Values, ready: Values, counts: Values) -> None:
    """Add what one ScenarioGroup has; two of one scenario are added up."""
    scenario = (group.metadata.namespace, group.spec.service, group.spec.scenario)
    held = decisions.live_counts(group)
    found = group.status.groups
    _add(ready, (*scenario, "prefill"), sum(g.prefill.ready for g in found))
    _add(ready, (*scenario, "decode"), sum(g.decode.ready for g in found))
    if held is None:
        return
    _add(wanted, (*scenario, "prefill"), held.groups * held.prefill)
    _add(wanted, (*scenario, "decode"), held.groups * held.decode)
    for of, value in zip(OF, (held.groups, held.prefill, held.decode), strict=True):
        _add(counts, (*scenario, of), value)


def _add(values: Values, labels: tuple[str, ...], value: float) -> None:
    values[labels] = values.get(labels, 0.0) + value


def _put(family: Gauge, values: Values) -> None:
    for gone in set(family.known()) - values.keys():
        family.remove(*gone)
    for labels, value in values.items():
        family.labels(*labels).set(value)
