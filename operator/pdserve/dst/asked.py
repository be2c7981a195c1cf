"""The counts and changes that specs and decisions ask of the operator, now and lately."""

from __future__ import annotations

import asyncio

from pdserve.api import InvalidObjectError, ScenarioGroup, revision_of
from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.controllers.shared.parsed import parsed
from pdserve.desired import decisions
from pdserve.dst.world import World
from pdserve.frozen import Frozen, Memo
from pdserve.kube.resource import Object, ObjectKey
from pdserve.ratio.types import Counts
from pdserve.terms.json import JsonObject

ScenarioName = tuple[str, str, str]
"""Namespace, PDService, scenario."""


class Asked:
    """The history of counts and revisions of every scenario of a world. Times: the loop's."""

    def __init__(self, world: World) -> None:
        """`world`: whose objects are read."""
        self._world = world
        self._counts: dict[ScenarioName, list[tuple[float, Counts]]] = {}
        self._spares: dict[ScenarioName, list[tuple[float, int]]] = {}
        self._revisions: dict[ScenarioName, tuple[float, str]] = {}

    def note(self, *, judged: bool = True) -> None:
        """Read the objects; to be called after each change of a spec or decision.

        `judged` is false for what was there from the beginning: nothing changed then.
        """
        moment = asyncio.get_running_loop().time()
        for group in self._world.seen(SCENARIO_GROUPS):
            name = scenario_name(group)
            revision = current_revision(group)
            if self._revisions.get(name, (0.0, ""))[1] != revision:
                self._revisions[name] = (moment if judged else 0.0, revision)
            counts = counts_in_force(self._world, group)
            known = self._counts.setdefault(name, [])
            if counts is not None and (not known or known[-1][1] != counts):
                known.append((moment, counts))
            spares = self._spares.setdefault(name, [])
            asked = spares_in_force(self._world, group)
            if not spares or spares[-1][1] != asked:
                spares.append((moment, asked))

    def counts(self, name: ScenarioName) -> Counts | None:
        """The counts in force now."""
        known = self._counts.get(name)
        return known[-1][1] if known else None

    def lately(self, name: ScenarioName, since: float) -> list[Counts]:
        """The counts that were in force at some moment after `since` (loop time, seconds)."""
        known = self._counts.get(name, ())
        older = [counts for time, counts in known if time < since]
        return [counts for time, counts in known if time >= since] + older[-1:]

    def spares_lately(self, name: ScenarioName, since: float) -> list[int]:
        """The spares of each P/D group that were asked for at some moment after `since`."""
        known = self._spares.get(name, ())
        older = [spares for time, spares in known if time < since]
        return [spares for time, spares in known if time >= since] + older[-1:]

    def revision_since(self, name: ScenarioName) -> float:
        """Loop time (seconds) since which the spec asks for its revision; 0: from the start."""
        return self._revisions.get(name, (0.0, ""))[0]


def scenario_name(group: Object) -> ScenarioName:
    """Namespace, PDService and scenario of a ScenarioGroup."""
    spec = group["spec"]
    return group["metadata"]["namespace"], spec["service"], spec["scenario"]


def spares_in_force(world: World, group: Object) -> int:
    """The spares that the PDService asks for in each P/D group."""
    spares = (_scenario_of(world, group) or {}).get("spares", 0)
    return spares if isinstance(spares, int) else 0


def _scenario_of(world: World, group: Object) -> JsonObject | None:
    """What the PDService says of the group's scenario."""
    namespace, service, scenario = scenario_name(group)
    found = world.api.store(PDSERVICES).objects.get(ObjectKey(namespace, service))
    scenarios = (found or {}).get("spec", {}).get("scenarios", ())
    return next((s for s in scenarios if s["name"] == scenario), None)


def counts_in_force(world: World, group: Object) -> Counts | None:
    """The counts to have: the PDService's, the newest decision's, or the spec's, by the mode."""
    spec = _scenario_of(world, group)
    mode = (spec or {}).get("ratio", {}).get("mode", "External")
    if spec is not None and mode == "Fixed":
        fixed = spec["ratio"]["fixed"]
        return Counts(fixed["groups"], fixed["prefill"], fixed["decode"])
    try:
        model = parsed(ScenarioGroup, group)
    except InvalidObjectError:
        return None
    if mode == "External":
        return decisions.live_counts(model)
    applied = decisions.newest_applied(model)
    return None if applied is None else decisions.counts_of(applied)


def current_revision(group: Object) -> str:
    """The revision that the spec asks for; "" where today's rules refuse the object."""
    return _revisions.of(lambda: _revision(group), group)


def _revision(group: Object) -> str:
    # No part of a status refuses an object, and a write of one leaves the spec as it is.
    asking = Frozen({k: v for k, v in group.items() if k != "status"})
    try:
        return revision_of(parsed(ScenarioGroup, asking).spec)
    except InvalidObjectError:
        return ""


_revisions: Memo[str] = Memo(most=64)
