"""A scenario's scheduler with the gateway's clock, timer and metrics.

Neighbours: `forwarding.request.scheduler` decides, `service` makes one per scenario of the table.
"""

from __future__ import annotations

import asyncio
import random
import time

from pdserve.forwarding.ranking import NEVER
from pdserve.forwarding.request.scheduler import ScenarioScheduler
from pdserve.gateway.metrics import GatewayMetrics, ScenarioMetrics
from pdserve.wire.routes import RouteScenario, RouteTable

_SOONEST = 0.0005
"""Timers of the loop have millisecond steps; half of one late is early enough."""


class TimedScheduler(ScenarioScheduler):
    """Live state of one scenario in this process."""

    def __init__(
        self, table: RouteTable, scenario: RouteScenario, metrics: GatewayMetrics,
        rng: random.Random, room_limit: int,
    ) -> None:  # fmt: skip
        self.metrics = ScenarioMetrics(metrics, table.service, scenario.name, scenario.slo)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        super().__init__(
            scenario, table.tier_costs, self.metrics, rng.random, room_limit, self._set_timer
        )

    def show_instances(self) -> None:
        """Publish legs in progress and ejections, per routed instance."""
        affinity = self.dispatcher.affinity
        index = affinity.index if affinity else None
        self.metrics.prefixes(index.size if index else 0, index.reporting if index else 0)
        crossover = self.local.crossover(time.perf_counter()) if self.local is not None else 0.0
        self.metrics.local_crossover(int(crossover))
        for i in self.view.instances():
            self.metrics.instance(i.route.role, i.id, i.used, i.health.ejected)

    def _set_timer(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due < NEVER:
            seconds = max(_SOONEST, due - time.perf_counter())
            self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        self.tick(time.perf_counter())
