"""Whose turn a rollout is: scenarios of one PDService roll one by one (`desired.rollouts`)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from pdserve.api import PDService, ScenarioGroup
from pdserve.controllers.shared.caches import BY_SERVICE, Caches
from pdserve.controllers.shared.parsed import parsed
from pdserve.controllers.shared.skipped import read_each
from pdserve.desired.compare import controller_uid
from pdserve.desired.rollouts import comes_first
from pdserve.groups.types import Wanted


def in_turn(
    caches: Caches, service: PDService | None, group: ScenarioGroup, wanted: Wanted
) -> Wanted:
    """`wanted`, with the scenario that its rollout waits for; without a PDService there is none.

    ScenarioGroups are read in caches.
    """
    if service is None:
        return wanted
    meta = service.metadata
    held = caches.groups.by_index(BY_SERVICE, (meta.namespace, meta.name))
    ours = (obj for obj in held if controller_uid(obj) == meta.uid)
    read = read_each(ours, partial(parsed, ScenarioGroup), caches.skipped, "observe")
    first = comes_first(service, group, {g.spec.scenario: g for g in read})
    return replace(wanted, rollout=replace(wanted.rollout, waits_for=first))
