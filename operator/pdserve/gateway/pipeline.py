"""Request lifecycle: admit, prefill, decode, deliver.

1. Admit: the latest time at which a prefill may accept (infeasible: refused at once).
2. Prefill (`prefill_phase`): wait in the scheduler until a prefill has accepted and answered.
   In scenarios with `localPrefill` a decode may be asked to compute the prompt instead
   (`local_phase`); what it does not take goes to a prefill.
3. If token 1 ended the request, answer from the prefill's reply.
4. Decode (`decode_phase`): a decode of the same group pulls the KV; its stream is relayed as
   received and measured, or its reply collected and sent whole.

An engine whose legs go out together (`engines.flow`) has one phase instead of steps 2 to 4:
`together_phase`.

A fault before the first byte to the client is repaired: another prefill, another decode, or once a
new prefill (within the retry budget). The request then gets its deadlines again, as if it had
just arrived: it has missed its target through no fault of its own, and a late answer is better
than none. A stream that lost its decode after the first byte goes on from another one where the
engine can do that (`ContinuingFlow`): a prefill computes the prompt and what the client has. Else
it ends with an error event.

Whatever happens, legs are closed, KV is released and the request is counted once.
"""

from __future__ import annotations

import asyncio
import time

from pdserve.engines.flow import FinishedReply, FlowError
from pdserve.forwarding.deadline import SAFETY
from pdserve.forwarding.dispatch import Ticket
from pdserve.gateway.decode_phase import DecodePhase
from pdserve.gateway.errors import overloaded
from pdserve.gateway.local_phase import LocalPhase
from pdserve.gateway.prefill_phase import PrefillPhase
from pdserve.gateway.request_context import (
    FinishedPrefill,
    KvLostError,
    RequestContext,
    StreamLostError,
)
from pdserve.gateway.together_phase import TogetherPhase


async def serve(context: RequestContext) -> None:
    """Serve one request from the waiting room to the last byte.

    Raises:
        ApiError: for the caller to send.
        CancelledError: the client left.
    """
    # The body is made before the request has a place in the room: what fails here costs no other
    # request.
    together = context.flow.order == "together"
    phase = TogetherPhase(context) if together else _PrefillFirst(context)
    try:
        await _serve(context, phase)
    except asyncio.CancelledError:
        _client_left(context)
        raise
    except Exception:
        if context.continued:
            # Whatever it could not be continued for, its client has half an answer.
            context.outcome, context.invalid = "failed", False
        elif context.outcome is None and not context.invalid:
            context.outcome = "failed"
        raise
    finally:
        context.close()
        if context.outcome is not None:
            if context.repeated and context.outcome == "completed":
                context.scheduler.budget.give_back(context.repeated)
            scheduler, now = context.scheduler, time.perf_counter()
            scheduler.turns.generated(context.job.turn, context.timeline.generated, now)
            scheduler.metrics.finish(context.timeline, context.outcome, now, scheduler.scenario)


class _PrefillFirst:
    """Legs one after the other: a decode is chosen when a prefill has answered."""

    def __init__(self, context: RequestContext) -> None:
        self._c = context
        self._prefill = PrefillPhase(context)
        self._local = None if context.scheduler.local is None else LocalPhase.of(context)

    async def run(self, ticket: Ticket) -> None:
        """Deliver the answer; raises ApiError or KvLostError."""
        local, self._local = self._local, None
        if local is not None and await local.run(ticket):
            return
        held = self._c.held = await self._prefill.run(ticket)
        if held.final is not None:
            _answer(self._c, held, held.final)
        else:
            await DecodePhase(self._c, held).run()


async def _serve(c: RequestContext, phase: _PrefillFirst | TogetherPhase) -> None:
    ticket = c.ticket = _admit(c)
    while True:
        try:
            await phase.run(ticket)
            return
        except KvLostError as error:
            c.release()
            if c.repeated > c.continued or not c.repeat():
                raise c.failed(str(error)) from error
            c.grant_grace()
            if error.prefill is not None:
                c.scheduler.dispatcher.failed(ticket, error.prefill, time.perf_counter())
        except StreamLostError as lost:
            if not _goes_on(c, str(lost)):
                return
        c.scheduler.dispatcher.lost_decode(ticket, time.perf_counter())


def _goes_on(c: RequestContext, message: str) -> bool:
    """Whether tokens are missing in a stream whose decode was lost; else it gets its end.

    Raises:
        ApiError: they are, and no other decode can go on.
    """
    try:
        if c.write_end():
            c.outcome = "completed"
            return False
        c.fault(message)
        if not c.repeat():
            raise c.failed(message)
        c.go_on()
    except FlowError as error:
        raise c.failed(f"{message}; {error}") from error
    c.scheduler.metrics.continued()
    return True


def _admit(c: RequestContext) -> Ticket:
    scheduler, scenario = c.scheduler, c.scheduler.scenario
    whole = tokens = scheduler.estimate.tokens(c.size)
    scheduler.budget.earn()
    now, target = time.perf_counter(), scenario.slo.ttft
    if c.job.streamed:
        target -= min(scheduler.handoff.seconds, target / 2)
    left = c.timeline.arrived + target - now
    c.predict(tokens)
    if SAFETY * c.predicted >= left:
        # What a prefill has in its cache it need not compute.
        tokens = scheduler.to_compute(c.size, tokens)
        c.predict(tokens)
    if SAFETY * c.predicted >= left:
        if scheduler.prefill_times.too_long(tokens, left) and not scheduler.try_anyway(now):
            scheduler.metrics.expired("arrival")
            c.outcome = "expired"
            raise overloaded(
                "deadline_infeasible",
                f"scenario {scenario.name!r}: prefill of about {tokens:.0f} tokens takes about "
                f"{c.predicted:.2f} s, more than the TTFT target of {target:g} s",
                scheduler.next_trial - now,
                SAFETY * c.predicted,
                left,
            )
        # Nothing like it was measured, or not of late: its prefill tells.
        c.trial, c.predicted = True, 0.0
    deadline = c.timeline.arrived + target - SAFETY * c.predicted
    ticket = scheduler.offer(deadline, c.size, whole, c.job.turn)
    if ticket is not None:
        return ticket
    scheduler.metrics.expired("arrival")
    c.outcome = "expired"
    wait = scheduler.dispatcher.wait(now)
    raise overloaded(
        "waiting_room_full",
        f"scenario {scenario.name!r}: {scheduler.dispatcher.waiting} requests wait already",
        c.retry_in(wait),
        wait + SAFETY * c.predicted,
        left,
    )


def _answer(c: RequestContext, held: FinishedPrefill, final: FinishedReply) -> None:
    c.tell(held.leg, None)
    now = c.timeline.last = time.perf_counter()
    c.timeline.first = now if c.timeline.first is None else c.timeline.first
    c.timeline.output_tokens = final.completion_tokens
    if c.reply.started:
        c.reply.end(final.body)
    elif c.job.streamed:
        c.reply.start(200, final.content_type, final.body, ends=True)
    else:
        c.reply.send(200, final.body, final.content_type)
    c.outcome = "completed"


def _client_left(c: RequestContext) -> None:
    """The client closed its connection: in time (not offered), or after a missed target."""
    if c.outcome is not None or c.invalid:
        return
    shown = time.perf_counter() if c.timeline.first is None else c.timeline.first
    if shown - c.timeline.arrived > c.scheduler.scenario.slo.ttft:
        c.outcome = "cancelled_late"
    else:
        c.scheduler.metrics.client_cancelled()
