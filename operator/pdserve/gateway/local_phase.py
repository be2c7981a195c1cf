"""One leg instead of two: a decode computes the prompt in the steps of what runs there.

Tried once for each request, before a prefill is asked; `forwarding.local_prefill` says whether and
where. A decode that refuses, breaks or cannot do it costs the request a moment: it goes back to the
waiting room with its turn. A loss counts as any other fault of an instance under the request. A
stream that loses its decode later goes on by way of a prefill, as all others do.

Neighbours: `pipeline` calls `run`; `decode_phase.deliver` passes the answer on.
"""

from __future__ import annotations

import time

from pdserve.engines.flow import LegAttempt, LocalPrefillFlow, prefills_locally
from pdserve.forwarding.dispatch import Ticket
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.local_prefill import LocalPrefills, LocalPrompt
from pdserve.gateway.decode_phase import deliver
from pdserve.gateway.legs import Leg
from pdserve.gateway.prefill_phase import LOST_TIME
from pdserve.gateway.request_context import RequestContext
from pdserve.http1.client import Exchange, UpstreamError


class LocalPhase:
    """The one leg of a request at a decode that computes its prompt."""

    def __init__(
        self, context: RequestContext, flow: LocalPrefillFlow, local: LocalPrefills
    ) -> None:
        self._c, self._flow, self._local = context, flow, local

    @staticmethod
    def of(context: RequestContext) -> LocalPhase | None:
        """For a request of a scenario in which decodes may compute prompts; None: of another."""
        flow, local = prefills_locally(context.flow), context.scheduler.local
        return None if flow is None or local is None else LocalPhase(context, flow, local)

    async def run(self, ticket: Ticket) -> bool:
        """Ask a decode if that is better for this request; True: it has its answer.

        Raises:
            ApiError: to be sent to the client.
            KvLostError: the decode broke off before the first byte.
            StreamLostError: it broke off later, and another may go on.
        """
        c = self._c
        decode = self._choose(ticket)
        if decode is None:
            return False
        c.scheduler.leave_room(ticket)
        leg = c.open(decode)
        leg.taken()  # it is not on its way from a prefill
        slo, attempt = c.scheduler.scenario.slo, self._attempt(leg)
        patience = max(3 * slo.ttft, 4 * c.predicted) + 1.0
        if not c.job.streamed:
            patience = c.tools.settings.whole_reply
        request = self._flow.local_leg(
            attempt,
            self._flow.prepare_local(c.job.endpoint, c.job.body),
            slo.tpot if self._local.bounded else None,
        )
        try:
            exchange = await c.post(
                leg, request, patience, None if c.job.streamed else self._computed
            )
        except UpstreamError as error:
            self._lost(leg, error)
            return False
        try:
            return await self._read(leg, exchange)
        finally:
            c.done(leg, exchange)

    def _choose(self, ticket: Ticket) -> Instance | None:
        """The decode to ask, counted as sent there."""
        c = self._c
        scheduler, now = c.scheduler, time.perf_counter()
        if c.job.turn.sheddable and scheduler.dispatcher.waiting > 1:
            return None  # others come first
        tokens = scheduler.estimate.tokens(c.size)
        cached = tokens - scheduler.to_compute(c.size, tokens)
        prompt = LocalPrompt(tokens, cached, ticket.prompt)
        return self._local.choose(prompt, ticket.deadline - now, now)

    def _attempt(self, leg: Leg) -> LegAttempt:
        c, route = self._c, leg.instance.route
        return c.attempt(
            f"{c.job.leg_name}-local", 1, c.timeline.arrived + c.scheduler.scenario.slo.ttft,
            route, route, early_head=not c.job.streamed, token_ids=c.sent is not None,
        )  # fmt: skip

    async def _read(self, leg: Leg, exchange: Exchange) -> bool:
        """Interpret a reply and deliver it; False: a prefill is to be asked."""
        c = self._c
        answer = c.flow.read_head(exchange.status, exchange.headers)
        if answer.kind == "accepted":
            await self._deliver(leg, exchange)
            return True
        c.timeline.first = None
        if answer.kind == "refused":
            c.scheduler.metrics.local_prefill("refused")
            self._local.refused(leg.instance, time.perf_counter())
            leg.refused(exchange, answer.reason, local=True)
            return False
        if answer.kind == "client_error":
            try:
                body = await exchange.read(c.tools.settings.stream_silence)
            except UpstreamError as error:
                self._lost(leg, error)
                return False
            leg.answered()
            if not self._flow.lacks_local(body):
                raise c.relayed_error(exchange, body)
            c.scheduler.metrics.local_prefill("refused")
            self._local.unable(leg.instance)
            return False
        leg.untake()
        leg.failed("status")
        c.scheduler.metrics.local_prefill("failed")
        c.fault(f"decode {leg.instance.id} answered {exchange.status}")
        return False

    async def _deliver(self, leg: Leg, exchange: Exchange) -> None:
        c, said = self._c, self._flow.read_local(exchange.headers)
        c.scheduler.metrics.local_prefill("served")
        leg.accepted(exchange)
        self._local.accepted(leg.instance)
        c.timeline.prompt_tokens, c.timeline.cached_tokens = said.prompt_tokens, said.cached_tokens
        if c.sent is not None:
            c.sent.kv = said.kv
        c.tell(None, leg)
        try:
            await deliver(c, leg, exchange, _nothing)
        finally:
            self._learn(leg.instance)

    def _learn(self, decode: Instance) -> None:
        """Learn from what the decode said of the prompt: in its head, or in its usage."""
        c, line = self._c, self._c.timeline
        if not line.prompt_tokens:
            return
        c.scheduler.estimate.learn(c.size, line.prompt_tokens)
        computed = line.prompt_tokens - line.cached_tokens
        c.scheduler.turns.prefilled(c.job.turn, computed, time.perf_counter())
        prompt = c.ticket.prompt if c.ticket is not None else None
        if prompt is not None:
            index = self._local.prefixes
            line.expected_cached = int(
                index.prefilled(prompt, decode, line.prompt_tokens, line.cached_tokens)
            )

    def _computed(self, _: Exchange) -> None:
        """Early head of a reply that is not streamed: the decode has token 1."""
        self._c.timeline.first = time.perf_counter()

    def _lost(self, leg: Leg, error: UpstreamError) -> None:
        """A decode was lost: the request goes on as one that lost its prefill does."""
        c = self._c
        c.timeline.first = None
        c.scheduler.metrics.local_prefill("failed")
        leg.untake()
        leg.failed(error.kind)
        if time.perf_counter() - leg.sent_at > LOST_TIME:
            c.grant_grace()
        if error.kind != "connect":
            c.fault(f"decode {leg.instance.id}: {error}")


def _nothing() -> None:
    """No prefill holds anything for this request."""
