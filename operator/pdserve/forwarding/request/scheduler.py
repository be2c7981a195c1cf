"""The requests of one scenario that wait: for a prefill, in the room, or for a decode.

A scheduler owns the scenario's view and waiting room, and what is learned of its requests. What
changes at an instance is noted (`changed`), and at the end of each event `settle` decides again:
requests that wait for a decode look once more, and the room's requests learn which prefill to ask,
or that their time is over. `wake` gets the time of the next look if nothing happens before; `tick`
is that look. Neighbours: `dispatch` decides about prefills, `request` acts on it, `gateway.service`
makes one per scenario of the route table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from pdserve.forwarding.budget import RetryBudget
from pdserve.forwarding.deadline import (
    TRIAL_SECONDS,
    HandoffTime,
    PrefillTimes,
    PromptSize,
    TokenEstimate,
)
from pdserve.forwarding.dispatch import Dispatcher, GaveUp, Ticket
from pdserve.forwarding.fair_turns import FairTurns, Turn
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.local_prefill import LocalPrefills
from pdserve.forwarding.prefix.affinity import Affinity, KnownPrompt
from pdserve.forwarding.prefix.index import CAPACITY
from pdserve.forwarding.ranking import NEVER
from pdserve.forwarding.request.effects import ScenarioReport
from pdserve.forwarding.scenario_view import View
from pdserve.wire.routes import RouteScenario


class Waiting:
    """A request, as a scheduler calls it."""

    def on_send(self, prefill: Instance, now: float) -> None:
        """It is its turn at this prefill, which counts it as sent."""
        raise NotImplementedError

    def on_gave_up(self, reason: GaveUp, now: float) -> None:
        """It has left the room unserved."""
        raise NotImplementedError

    def on_change(self, now: float) -> None:
        """Something changed, or it is the time that it waited for."""
        raise NotImplementedError

    def on_retired(self, now: float) -> None:
        """Its scheduler has left the routes, and has let it out of the room."""
        raise NotImplementedError

    def on_bug(self, error: Exception, now: float) -> None:
        """One of the above raised: the request ends, and no other hears of it."""
        raise NotImplementedError


class ScenarioScheduler:
    """Live state of one scenario in this process."""

    def __init__(
        self, scenario: RouteScenario, tier_costs: Mapping[str, int], report: ScenarioReport,
        random: Callable[[], float], room_limit: int, wake: Callable[[float], None],
    ) -> None:  # fmt: skip
        """Make one in which nothing waits.

        Args:
            scenario: as the route table has it.
            tier_costs: hop cost by level of the tree.
            report: counts what becomes of requests.
            random: draws from [0, 1) and breaks ties.
            room_limit: requests that may wait for a prefill.
            wake: gets the time of the next `tick` if nothing happens before; NEVER: no need.
        """
        self.view = View(scenario, tier_costs)
        self.report, self.random = report, random
        self.prefill_times = PrefillTimes()
        self.handoff = HandoffTime()
        self.dispatcher = Dispatcher(self.view, random, room_limit)
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
        self._wake = wake
        self._told = self._room_due = NEVER
        """What `wake` got last; when the room has to be looked at."""
        self._in_room: dict[Ticket, Waiting] = {}
        self._for_decode: dict[Waiting, float] = {}
        """Requests that wait for a decode, each with the time of its next look."""
        self.retired = False
        """It left the routes: nothing waits for a prefill here any more."""
        self._changed = self._settling = False
        self._shown = 0
        """Requests that wait, as the report has it."""

    @property
    def scenario(self) -> RouteScenario:
        """The scenario as the newest route table has it."""
        return self.view.scenario

    def update(self, scenario: RouteScenario, tier_costs: Mapping[str, int], now: float) -> None:
        """Follow a new route table at `now`, in monotonic seconds; `tier_costs` as at first."""
        self.view.update(scenario, tier_costs)
        self._follow_prefixes()
        self._follow_local()
        self.budget.cover(self.view.slots)
        self.changed()
        self.settle(now)

    def retire(self, now: float) -> None:
        """The scenario, or its model, left the table: what waits for a prefill goes elsewhere.

        What a prefill holds still goes to a decode of its group. `now`: monotonic seconds.
        """
        self.retired = True
        self.update(dataclasses.replace(self.scenario, groups=()), {}, now)
        for ticket, request in list(self._in_room.items()):
            self.withdraw(ticket, request)
            try:
                request.on_retired(now)
            except Exception as error:
                request.on_bug(error, now)

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

    # --- what requests ask ---

    def offer(
        self, deadline: float, size: PromptSize, tokens: float, turn: Turn, now: float
    ) -> Ticket | None:
        """Let a new request into the room; None when it is full. See `Dispatcher.offer`.

        `tokens`: expected length of the prompt. `now`: monotonic seconds.
        """
        known = KnownPrompt(size.blocks, tokens) if size.blocks.digests else None
        rank = self.turns.rank(turn, deadline, self.scenario.slo.ttft, now)
        return self.dispatcher.offer(deadline, known, rank=rank, sheddable=turn.sheddable)

    def to_compute(self, size: PromptSize, tokens: float) -> float:
        """Tokens of a prompt that are in no prefill's cache, of `tokens` expected altogether."""
        affinity = self.dispatcher.affinity
        if affinity is None or not size.blocks.digests:
            return tokens
        return affinity.to_compute(KnownPrompt(size.blocks, tokens))

    def prefilled(
        self, ticket: Ticket, prefill: Instance, prompt_tokens: int, cached_tokens: int
    ) -> int:
        """Learn which prefill has a prompt; returns how many tokens of it were expected there.

        `prompt_tokens`, `cached_tokens`: what the engine reported.
        """
        affinity = self.dispatcher.affinity
        if affinity is None or ticket.prompt is None:
            return 0
        return int(affinity.prefilled(ticket.prompt, prefill, prompt_tokens, cached_tokens))

    def try_anyway(self, now: float) -> bool:
        """True now and then: serve a request although its deadline is predicted to be missed.

        `now`: monotonic seconds.
        """
        if now < self.next_trial:
            return False
        self.next_trial = now + TRIAL_SECONDS
        return True

    def await_prefill(self, ticket: Ticket, request: Waiting, now: float) -> None:
        """Wait in the room for a prefill; a refused or failed request comes back here.

        `on_send` or `on_gave_up` follows. `now`: monotonic seconds.
        """
        if not ticket.waiting:
            self.dispatcher.back(ticket, now)
        self._in_room[ticket] = request
        self._changed = True

    def leave_room(self, ticket: Ticket) -> None:
        """Take a request out of the room for now; `await_prefill` puts it back at its turn."""
        self.dispatcher.withdraw(ticket)
        self._show_waiting()

    def await_decode(self, request: Waiting, until: float) -> None:
        """Wait until something changes, or for `until` (monotonic seconds): `on_change` follows."""
        self._for_decode[request] = until

    def settled(self, ticket: Ticket) -> None:
        """Note that no prefill computes for this request any more."""
        if self.dispatcher.settled(ticket):
            self._changed = True

    def withdraw(self, ticket: Ticket, request: Waiting) -> None:
        """The request is over."""
        if ticket.waiting:
            self.dispatcher.withdraw(ticket)
            self._show_waiting()
        if self._in_room:
            self._in_room.pop(ticket, None)
        if self._for_decode:
            self._for_decode.pop(request, None)
        self.settled(ticket)

    # --- deciding ---

    def changed(self) -> None:
        """Note that an instance changed; `settle` decides again."""
        self._changed = True

    def tick(self, now: float) -> None:
        """The time that `wake` got has come; `now` in monotonic seconds."""
        self._told = NEVER
        self.settle(now)

    def settle(self, now: float) -> None:
        """Decide again where something changed, or it is time; `now` in monotonic seconds.

        Called at the end of each event; harmless inside of itself.
        """
        if self._settling:
            return
        self._settling = True
        try:
            while True:
                changed, self._changed = self._changed, False
                if self._for_decode:
                    self._look_for_decodes(now, changed)
                if not self.dispatcher.room:
                    self._room_due = NEVER
                elif changed or self._room_due <= now:
                    self._step(now)
                if not self._changed:
                    break
        finally:
            self._settling = False
        due = self._room_due
        if self._for_decode:
            due = min(due, *self._for_decode.values())
        if due != self._told:
            self._told = due
            self._wake(due)

    def _look_for_decodes(self, now: float, changed: bool) -> None:
        for request, until in list(self._for_decode.items()):
            if (changed or until <= now) and self._for_decode.pop(request, None) is not None:
                try:
                    request.on_change(now)
                except Exception as error:
                    request.on_bug(error, now)

    def _step(self, now: float) -> None:
        step = self.dispatcher.step(now)
        self._room_due = step.wake_at
        for send in step.sends:
            request = self._in_room.pop(send.ticket, None)
            if request is None:
                # It has ended meanwhile: give the place back, and go on with the others.
                send.prefill.abandoned()
                self._changed = True
                continue
            try:
                request.on_send(send.prefill, now)
            except Exception as error:
                request.on_bug(error, now)
        for ticket, reason in step.gave_up:
            request = self._in_room.pop(ticket, None)
            if request is not None:
                try:
                    request.on_gave_up(reason, now)
                except Exception as error:
                    request.on_bug(error, now)
        self._show_waiting()

    def _show_waiting(self) -> None:
        waiting = self.dispatcher.waiting
        if waiting != self._shown:
            self._shown = waiting
            self.report.waiting(waiting)
