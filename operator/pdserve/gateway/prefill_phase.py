"""First half of a request: wait in the scheduler and ask the prefills it names, one by one.

A refusal, a lost connection or a silent instance sends the request back to the scheduler, within
its deadline. Neighbours: `pipeline` calls `run` and `decode_phase` goes on with the
`FinishedPrefill`; `together_phase` sends single legs by `next` and `ask`.
"""

from __future__ import annotations

import time

from pdserve.engines.flow import FlowError, PrefillOutcome
from pdserve.forwarding.deadline import SAFETY
from pdserve.forwarding.dispatch import Ticket
from pdserve.gateway.errors import overloaded
from pdserve.gateway.legs import Leg
from pdserve.gateway.prefix_feeds import naming_blocks
from pdserve.gateway.request_context import FinishedPrefill, RequestContext
from pdserve.gateway.scenario_scheduler import ExpiredError
from pdserve.http1.client import Exchange, UpstreamError
from pdserve.http1.errors import ApiError
from pdserve.wire.calls import REJECT_DEADLINE
from pdserve.wire.routes import RouteInstance

LATE_ANSWERS = 2
"""Prefills that may refuse one request because it cannot meet its deadline there."""
LOST_TIME = 0.1
"""Seconds at a prefill that then failed, from which on a request gets its deadline again."""


class PrefillPhase:
    """The prefill legs of one request (a second `run` counts on)."""

    def __init__(self, context: RequestContext) -> None:
        self._c = context
        self._prepare()
        self._late = 0

    async def run(self, ticket: Ticket) -> FinishedPrefill:
        """Ask prefills until one has computed the KV; it is held for us until a decode pulled it.

        Raises:
            ApiError: no prefill took it in time, the client's request is wrong, or faults were too
                many.
        """
        while True:
            held = await self.ask(await self.next(ticket), ticket)
            if held is not None:
                return held

    async def next(self, ticket: Ticket) -> Leg:
        """The next leg, not sent yet.

        Raises:
            ApiError: no prefill can be asked in time.
        """
        try:
            send = await self._c.scheduler.prefill(ticket)
        except ExpiredError as error:
            raise self._expired(error) from error
        return self._c.open(send.prefill)

    @property
    def patience(self) -> float:
        """Seconds to wait for the head of a prefill's reply: 1 + max(3 x TTFT, 4 x T_p)."""
        return max(3 * self._c.scheduler.scenario.slo.ttft, 4 * self._c.predicted) + 1.0

    def due(self, ticket: Ticket) -> float:
        """When a prefill must have ended, in monotonic seconds: its deadline plus 1.05 x T_p."""
        return ticket.deadline + SAFETY * self._c.predicted

    async def ask(
        self, leg: Leg, ticket: Ticket, decode: RouteInstance | None = None
    ) -> FinishedPrefill | None:
        """Send a leg; None: ask another prefill. What it may hold and we do not use is released.

        `decode`: the one that gets the request at the same time.
        """
        c, patience = self._c, self.patience
        name = c.leg_name(ticket)
        attempt = c.attempt(name, ticket.attempts, self.due(ticket), leg.instance.route, decode)
        if not c.prefill_body:
            self._prepare()
        request = c.flow.prefill_leg(attempt, c.prefill_body)
        request = naming_blocks(request, c.scheduler, leg.instance, c.size.blocks)
        unused = True
        try:
            exchange = await c.post(leg, request, patience)
            try:
                held = await self._read(leg, exchange, name, ticket, patience)
            finally:
                c.done(leg, exchange)
            unused = held is None and exchange.status == 200
            return held
        except UpstreamError as error:
            unused = error.kind != "connect"
            self._lost(leg, error, ticket)
            return None
        except ApiError:
            unused = False
            raise
        finally:
            if unused:
                c.tools.releaser.release(c.flow, leg.instance, name)

    async def _read(
        self, leg: Leg, exchange: Exchange, name: str, ticket: Ticket, patience: float
    ) -> FinishedPrefill | None:
        """Interpret a reply; None: ask another prefill."""
        c = self._c
        answer = c.flow.read_head(exchange.status, exchange.headers)
        if answer.kind == "refused":
            leg.refused(exchange, answer.reason)
            if answer.reason == REJECT_DEADLINE:
                self._too_late_for(leg, ticket)
            return None
        try:
            body = await exchange.read(min(patience, c.tools.settings.stream_silence))
            if answer.kind == "client_error":
                leg.answered()
                raise c.relayed_error(exchange, body)
            if answer.kind == "accepted":
                outcome = c.flow.read_prefill(c.job.body, body)
                held = self._hold(leg, outcome, name)
                c.prefill_body = b""  # made anew in the rare case that it is needed again
                c.scheduler.dispatcher.settled(ticket)
                leg.accepted(exchange)
                self._learn(held)
                return held
            message = f"{leg.instance.id} answered {exchange.status}"
        except FlowError as error:
            message = f"{leg.instance.id}: {error}"
        leg.failed("status")
        self.others_first(leg, ticket)
        c.fault(f"prefill failed: {message}")
        return None

    def _prepare(self) -> None:
        c = self._c
        c.prefill_body = c.flow.prepare_prefill(c.job.endpoint, c.job.body)

    def _hold(self, leg: Leg, outcome: PrefillOutcome, name: str) -> FinishedPrefill:
        """What goes on from here; raises FlowError when nothing can be made of the reply."""
        c, now, job = self._c, time.perf_counter(), self._c.job
        final, to_decode = None, b""
        if c.flow.order == "together":
            pass  # the decode has the request already
        elif outcome.finished:
            final = c.flow.finished_reply(job.endpoint, job.body, outcome)
        else:
            to_decode = c.flow.prepare_decode(job.endpoint, job.body, outcome)
        return FinishedPrefill(leg, outcome, final, to_decode, outcome.release_id or name, now)

    def _learn(self, held: FinishedPrefill) -> None:
        c, outcome = self._c, held.outcome
        if c.continued:
            return  # it computed more than the prompt, and the client has its first token
        c.timeline.prompt_tokens = outcome.prompt_tokens
        c.timeline.cached_tokens = outcome.cached_tokens
        c.scheduler.estimate.learn(c.size, outcome.prompt_tokens)
        c.timeline.expected_cached = c.scheduler.prefilled(
            c.ticket, held.leg.instance, outcome.prompt_tokens, outcome.cached_tokens
        )
        computed = outcome.prompt_tokens - outcome.cached_tokens
        c.scheduler.turns.prefilled(c.job.turn, computed, held.at)
        if computed > 0:
            seconds = held.at - held.leg.sent_at
            c.scheduler.prefill_times.learn(computed, seconds)
            if c.scheduler.local is not None:
                c.scheduler.local.prefilled(computed, seconds, held.at)
        if not c.job.streamed and c.flow.first_token == "prefill":  # noqa: S105 (a model token)
            c.timeline.first = held.at

    def _lost(self, leg: Leg, error: UpstreamError, ticket: Ticket) -> None:
        leg.failed(error.kind)
        if time.perf_counter() - leg.sent_at > LOST_TIME:
            self._c.grant_grace()
        self.others_first(leg, ticket)
        if error.kind != "connect":
            ticket.suspect = True
            self._c.fault(f"prefill {leg.instance.id}: {error}")

    def _too_late_for(self, leg: Leg, ticket: Ticket) -> None:
        """A prefill with room but not the time: two of them saying so is an answer."""
        self._late += 1
        if self._c.scheduler.try_anyway(time.perf_counter()):
            self._c.trial = True
            return
        if self._late >= min(LATE_ANSWERS, self._c.scheduler.view.prefill_count):
            raise self._expired(ExpiredError("deadline"))
        self.others_first(leg, ticket)

    def others_first(self, leg: Leg, ticket: Ticket) -> None:
        """Ask other prefills before this one, under this request."""
        self._c.scheduler.dispatcher.failed(ticket, leg.instance, time.perf_counter())

    def _expired(self, error: ExpiredError) -> ApiError:
        c, scheduler = self._c, self._c.scheduler
        if c.has_grace:
            return c.failed("an instance was lost and no other prefill took over in time")
        scheduler.metrics.expired("before_prefill")
        if error.reason == "shed":
            c.outcome, code = "expired", "shed"
            why = "requests of another class fill the waiting room"
        elif error.reason == "no_decode":
            c.outcome, code = "decode_overload", "decode_overload"
            why = "no group had room on its decodes"
        else:
            c.outcome, code = "expired", "deadline_exceeded"
            why = "no prefill accepted in time"
        now = time.perf_counter()
        wait = scheduler.dispatcher.wait(now)
        return overloaded(
            code,
            f"scenario {scheduler.scenario.name!r}: {why} "
            f"(TTFT target {scheduler.scenario.slo.ttft:g} s)",
            c.retry_in(wait),
            wait + SAFETY * c.predicted,
            c.timeline.arrived + scheduler.scenario.slo.ttft - now,
        )
