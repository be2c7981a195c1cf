"""The route table at work: one scheduler per scenario, model and engine type, kept across versions.

A scenario that stays keeps its scheduler (waiting room, hints, counters); one that left is closed,
and its waiting requests move to the one that serves their model now. While another model or engine
is rolled out a scenario has two schedulers; a name that both serve goes to each by its share of the
prefill slots. Groups of an engine type that this gateway cannot use get no requests. Neighbours:
`route_source` brings tables, `app` asks for the scheduler of a request.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Collection, Mapping, Sequence

from pdserve.engines import registry
from pdserve.engines.flow import EngineFlow
from pdserve.engines.registry import EngineTypeError
from pdserve.forwarding.match import (
    Matcher,
    Part,
    describe_known,
    known_models,
    model_len,
    parts_of,
)
from pdserve.forwarding.prefix.index import CAPACITY
from pdserve.gateway.errors import unserved
from pdserve.gateway.metrics import GatewayMetrics
from pdserve.gateway.timed_scheduler import TimedScheduler
from pdserve.http1.errors import ApiError
from pdserve.http1.pool import Pool
from pdserve.wire.links import largest_body
from pdserve.wire.routes import RouteTable

logger = logging.getLogger(__name__)

Lane = tuple[Part, TimedScheduler, EngineFlow]
LaneKey = tuple[str, str, str, str]
"""Service, scenario, model and engine type."""


class Service:
    """What this gateway serves now; `table` is None until the first one came."""

    def __init__(
        self, metrics: GatewayMetrics, pool: Pool, rng: random.Random, room_limit: int = 1024
    ) -> None:
        self.table: RouteTable | None = None
        self.largest_body = 0
        """Bytes of a body above which its prompt fits into no context; 0: not known."""
        self._metrics = metrics
        self._pool = pool
        self._rng = rng
        self._room_limit = room_limit
        self._schedulers: dict[LaneKey, TimedScheduler] = {}
        self._parts: dict[str, tuple[Lane, ...]] = {}
        self._matcher: Matcher | None = None

    def apply(self, table: RouteTable) -> None:
        """Serve this table from now on."""
        parts = {s.name: parts_of(table, s) for s in table.scenarios}
        able = {name: [p for p in every if _can_serve(p)] for name, every in parts.items()}
        if any(parts.values()) and not any(able.values()):
            logger.error("route table %d: keeping the last good table", table.version)
            return
        old, self._schedulers = self._schedulers, {}
        self._parts = {
            name: tuple(
                (p, self._lane_of(table, p, old), registry.flow(p.served.flow)) for p in every
            )
            for name, every in able.items()
        }
        for scheduler in old.values():
            scheduler.retire(time.perf_counter())
        for scheduler in self._schedulers.values():
            scheduler.share_index(CAPACITY // len(self._schedulers))
        self.table, self._matcher = table, Matcher(table)
        bounds = [s.max_prompt_bytes for s in table.scenarios]
        self.largest_body = largest_body(max(bounds)) if bounds and all(bounds) else 0
        self._metrics.follow(table)
        self._pool.keep_only(
            {i.endpoint for s in table.scenarios for g in s.groups for i in g.instances}
        )
        logger.info("serving route table version %d of %s", table.version, table.service)

    def _lane_of(
        self, table: RouteTable, part: Part, old: dict[LaneKey, TimedScheduler]
    ) -> TimedScheduler:
        key = (table.service, part.scenario.name, part.served.model, part.served.flow)
        scheduler = old.pop(key, None)
        if scheduler is None:
            scheduler = TimedScheduler(
                table, part.scenario, self._metrics, self._rng, self._room_limit
            )
        else:
            scheduler.update(part.scenario, table.tier_costs, time.perf_counter())
        self._schedulers[key] = scheduler
        return scheduler

    def scheduler(
        self, model: str, headers: Mapping[str, str]
    ) -> tuple[TimedScheduler, EngineFlow, str]:
        """Scheduler, engine flow and engine-side model name of a request.

        Raises:
            ApiError: 404, no scenario takes the model with these headers; 503, no table is loaded.
        """
        matcher = self._matcher or Matcher(self.loaded())
        scenario = matcher.find(model, headers)
        parts = () if scenario is None else self._parts[scenario.name]
        able = [lane for lane in parts if model in lane[0].served.names]
        if not able:
            raise unserved(
                f"no scenario takes model {model!r} with these headers; "
                f"known scenarios: {describe_known(self.loaded())}"
            )
        return self._any_of(able)

    def _any_of(self, able: Sequence[Lane]) -> tuple[TimedScheduler, EngineFlow, str]:
        """One of several, each by its share of the prefill slots."""
        part, scheduler, flow = able[0]
        if len(able) > 1:
            slots = [_prefill_slots(lane[0]) for lane in able]
            # Without a prefill in any it waits for one, in one as well as in another.
            part, scheduler, flow = self._rng.choices(able, slots if any(slots) else None)[0]
        return scheduler, flow, part.served.model

    def another(self, scenario: str, model: str) -> tuple[TimedScheduler, EngineFlow, str] | None:
        """What `scheduler` gives for a request of this scenario whose own has left the table.

        `model`: as its client named it. None: the scenario serves it no more.
        """
        able = [lane for lane in self._parts.get(scenario, ()) if model in lane[0].served.names]
        return self._any_of(able) if able else None

    @property
    def schedulers(self) -> Collection[TimedScheduler]:
        """Those of all scenarios that are served."""
        return self._schedulers.values()

    def models(self) -> tuple[str, ...]:
        """Model names that clients may use."""
        return known_models(self.loaded())

    def model_len(self, name: str) -> int:
        """Tokens of prompt and answer together under this model name; 0 if they are not known."""
        return model_len(self.loaded(), name)

    def loaded(self) -> RouteTable:
        """The table.

        Raises:
            ApiError: 503, while there is none yet.
        """
        if self.table is None:
            raise ApiError(
                503,
                "no route table has been loaded yet",
                kind="server_error",
                code="not_ready",
                headers=((b"retry-after", b"1"),),
            )
        return self.table

    def show_instances(self) -> None:
        """Refresh the per-instance gauges before a scrape."""
        for scheduler in self._schedulers.values():
            scheduler.show_instances()


def _can_serve(part: Part) -> bool:
    try:
        registry.flow(part.served.flow)
    except EngineTypeError as error:
        logger.error("scenario %s: %s; those groups get no requests", part.scenario.name, error)
        return False
    return True


def _prefill_slots(part: Part) -> int:
    return sum(i.slots for g in part.scenario.groups for i in g.of_role("prefill"))
