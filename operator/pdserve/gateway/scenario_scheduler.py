"""One scenario at work: drives the pure decisions of `forwarding` with a clock and futures.

A scheduler owns the scenario's view, waiting room and metrics. A caller that changes what is known
of an instance calls `reschedule`; the scheduler then steps the room at once, hands sends to the
requests that wait for them, and sets one timer for the next moment worth looking. Neighbours:
`legs` and `pipeline` act on it, `service` makes one per scenario of the route table.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import time
from collections.abc import Mapping

from pdserve.forwarding.budget import RetryBudget
from pdserve.forwarding.deadline import (
    TRIAL_SECONDS,
    HandoffTime,
    PrefillTimes,
    PromptSize,
    TokenEstimate,
)
from pdserve.forwarding.dispatch import Dispatcher, GaveUp, Send, Ticket
from pdserve.forwarding.fair_turns import FairTurns, Turn
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.local_prefill import LocalPrefills
from pdserve.forwarding.prefix.affinity import Affinity, KnownPrompt
from pdserve.forwarding.prefix.index import CAPACITY
from pdserve.forwarding.ranking import NEVER
from pdserve.forwarding.scenario_view import View
from pdserve.gateway.metrics import GatewayMetrics, ScenarioMetrics
from pdserve.wire.routes import RouteScenario, RouteTable


class ExpiredError(Exception):
    """No prefill took the request in time."""

    def __init__(self, reason: GaveUp) -> None:
        super().__init__(reason)
        self.reason = reason


class ScenarioScheduler:
    """Live state of one scenario in this process."""

    def __init__(
        self,
        table: RouteTable,
        scenario: RouteScenario,
        metrics: GatewayMetrics,
        rng: random.Random,
        room_limit: int,
    ) -> None:
        self.view = View(scenario, table.tier_costs)
        self.metrics = ScenarioMetrics(metrics, table.service, scenario.name, scenario.slo)
        self.random = rng.random
        self.prefill_times = PrefillTimes()
        self.handoff = HandoffTime()
        self.dispatcher = Dispatcher(self.view, rng.random, room_limit)
        self._index_blocks = CAPACITY
        self._follow_prefixes()
        self.local: LocalPrefills | None = None
        """Chooses decodes that compute a prompt; None: none does."""
        self._follow_local()
        self.budget = RetryBudget()
        self.budget.cover(self.view.slots)
        self.estimate = TokenEstimate()
        self.turns = FairTurns()
        self.next_trial = 0.0
        """When the next request that seems infeasible is tried all the same."""
        self._waiters: dict[Ticket, asyncio.Future[Send]] = {}
        self._changed: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._shown = 0
        """Requests that wait, as the metrics have it."""
        self.loop = asyncio.get_running_loop()

    @property
    def scenario(self) -> RouteScenario:
        """The scenario as the newest route table has it."""
        return self.view.scenario

    def update(self, scenario: RouteScenario, tier_costs: Mapping[str, int]) -> None:
        """Follow a new route table; `tier_costs`: hop cost by level of the tree."""
        self.view.update(scenario, tier_costs)
        self._follow_prefixes()
        self._follow_local()
        self.budget.cover(self.view.slots)
        self.reschedule()

    def share_index(self, blocks: int) -> None:
        """Keep at most so many prompt blocks in the prefix index."""
        if blocks != self._index_blocks:
            self._index_blocks = blocks
            self._follow_prefixes()
            self._follow_local()

    def _follow_prefixes(self) -> None:
        """Have an index of prefixes where the scenario wants it, of the prefills it has now."""
        dispatcher = self.dispatcher
        if not self.view.scenario.prefix_affinity:
            dispatcher.affinity = None
        elif dispatcher.affinity is None:
            dispatcher.affinity = Affinity(
                self.view, self.prefill_times, self.random, self._index_blocks
            )
        else:
            dispatcher.affinity.follow(self._index_blocks)

    def _follow_local(self) -> None:
        if self.view.scenario.local_prefill == "Off":
            self.local = None
        elif self.local is None:
            self.local = LocalPrefills(
                self.view, self.prefill_times, self.handoff, self.dispatcher, self.random,
                self._index_blocks,
            )  # fmt: skip
        else:
            self.local.follow(self._index_blocks)

    @property
    def wants_blocks(self) -> bool:
        """Whether the blocks of a prompt can make a difference: there is a choice of instances."""
        choice = self.dispatcher.affinity is not None and self.view.prefill_count > 1
        return choice or self.local is not None

    def offer(self, deadline: float, size: PromptSize, tokens: float, turn: Turn) -> Ticket | None:
        """Let a new request into the room; None when it is full. See `Dispatcher.offer`.

        `tokens`: expected length of the prompt.
        """
        known = KnownPrompt(size.blocks, tokens) if size.blocks.digests else None
        rank = self.turns.rank(turn, deadline, self.scenario.slo.ttft, time.perf_counter())
        return self.dispatcher.offer(deadline, known, rank=rank, sheddable=turn.sheddable)

    def to_compute(self, size: PromptSize, tokens: float) -> float:
        """Tokens of a prompt that are in no prefill's cache, of `tokens` expected altogether."""
        affinity = self.dispatcher.affinity
        if affinity is None or not size.blocks.digests:
            return tokens
        return affinity.to_compute(KnownPrompt(size.blocks, tokens))

    def prefilled(
        self, ticket: Ticket | None, prefill: Instance, prompt_tokens: int, cached_tokens: int
    ) -> int:
        """Learn which prefill has a prompt; returns how many tokens of it were expected there.

        `prompt_tokens`, `cached_tokens`: what the engine reported.
        """
        affinity = self.dispatcher.affinity
        if affinity is None or ticket is None or ticket.prompt is None:
            return 0
        return int(affinity.prefilled(ticket.prompt, prefill, prompt_tokens, cached_tokens))

    def leave_room(self, ticket: Ticket) -> None:
        """Take a request out of the room for now; `prefill` puts it back at its turn."""
        self.dispatcher.withdraw(ticket)
        self._show_waiting()

    async def prefill(self, ticket: Ticket) -> Send:
        """Wait in the room for a prefill to ask; a refused or failed request comes back here.

        Raises:
            ExpiredError: its deadline passed.
        """
        if not ticket.waiting:
            self.dispatcher.back(ticket, time.perf_counter())
        future: asyncio.Future[Send] = self.loop.create_future()
        self._waiters[ticket] = future
        self.reschedule()
        if future.done():
            # Decided at once, as nearly always: awaiting it would cost a turn of the loop.
            del self._waiters[ticket]
            return future.result()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                # Chosen and cancelled in the same turn of the loop: give the place back.
                with contextlib.suppress(ExpiredError):
                    future.result().prefill.abandoned()
            raise
        finally:
            self._waiters.pop(ticket, None)
            self.dispatcher.withdraw(ticket)
            self._show_waiting()

    def try_anyway(self, now: float) -> bool:
        """True now and then: serve a request although its deadline is predicted to be missed."""
        if now < self.next_trial:
            return False
        self.next_trial = now + TRIAL_SECONDS
        return True

    def withdraw(self, ticket: Ticket) -> None:
        """The request is over; harmless when its ticket has left the room already."""
        self.dispatcher.withdraw(ticket)
        self._show_waiting()
        if self.dispatcher.settled(ticket):
            self.reschedule()

    async def changed(self, until: float) -> None:
        """Return when something here changed, at `until` at the latest.

        `until`: seconds of `time.perf_counter`.
        """
        future: asyncio.Future[None] = self.loop.create_future()
        self._changed.add(future)
        timer = self.loop.call_later(max(0.0, until - time.perf_counter()), _wake, future)
        try:
            await future
        finally:
            timer.cancel()
            self._changed.discard(future)

    def reschedule(self) -> None:
        """Decide again and wake those that wait in `changed`."""
        for future in self._changed:
            _wake(future)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.dispatcher.room:
            return
        now = time.perf_counter()
        step = self.dispatcher.step(now)
        for send in step.sends:
            waiter = self._waiters.get(send.ticket)
            if waiter is None or waiter.done():
                # Its request ended meanwhile: give the place back, and go on with the others.
                send.prefill.abandoned()
            else:
                waiter.set_result(send)
        for ticket, reason in step.gave_up:
            waiter = self._waiters.get(ticket)
            if waiter is not None and not waiter.done():
                waiter.set_exception(ExpiredError(reason))
        self._show_waiting()
        if step.wake_at < NEVER:
            # Timers of the loop have millisecond steps; half of one late is early enough.
            self._timer = self.loop.call_later(max(0.0005, step.wake_at - now), self.reschedule)

    def _show_waiting(self) -> None:
        waiting = self.dispatcher.waiting
        if waiting != self._shown:
            self._shown = waiting
            self.metrics.waiting(waiting)

    def show_instances(self) -> None:
        """Publish legs in progress and ejections, per routed instance."""
        affinity = self.dispatcher.affinity
        index = affinity.index if affinity else None
        self.metrics.prefixes(index.size if index else 0, index.reporting if index else 0)
        crossover = self.local.crossover(time.perf_counter()) if self.local is not None else 0.0
        self.metrics.local_crossover(int(crossover))
        for i in self.view.instances():
            self.metrics.instance(i.route.role, i.id, i.used, i.health.ejected)

    def retire(self) -> None:
        """The scenario left the table: no prefill is left, what waits runs into its deadline."""
        self.update(dataclasses.replace(self.scenario, groups=()), {})


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
