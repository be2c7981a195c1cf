"""Both legs of a request at once, for engines whose prefill and decode find each other themselves.

1. The scheduler chooses a prefill as ever, and a decode of its group is chosen with it.
2. Both get the request. A leg that refuses, fails or falls silent ends the attempt: the other leg
   is cut, which tells its instance, and the request goes back to the scheduler within its deadline.
   KV that did not come is one fault of the pair, and none beside that of its prefill; other
   instances are asked first then.
3. When the prefill has answered and the decode has begun its reply, that reply is the client's.

The prefill's answer says that its KV has gone over, so its slot is free from then on. Neighbours:
`prefill_phase` sends and reads the prefill leg, `decode_phase` delivers the reply, `pipeline`
calls `run` again for a reply that broke off before its first byte.
"""

from __future__ import annotations

import asyncio
import time

from pdserve.forwarding.decode import DecodeWalk, Try
from pdserve.forwarding.dispatch import Ticket
from pdserve.gateway.decode_phase import DecodePhase
from pdserve.gateway.legs import Leg
from pdserve.gateway.prefill_phase import PrefillPhase
from pdserve.gateway.request_context import FinishedPrefill, RequestContext
from pdserve.http1.client import Exchange, UpstreamError


class TogetherPhase:
    """The pairs of legs of one request (a second `run` counts on)."""

    def __init__(self, context: RequestContext) -> None:
        self._c = context
        self._prefill = PrefillPhase(context)
        self._failed: set[str] = set()
        """Decodes that failed this request."""
        self._unpulled = ""
        """Why the present attempt's decode has no KV: a fault of either leg."""
        job = context.job
        context.decode_body = context.flow.prepare_decode(job.endpoint, job.body, None)

    async def run(self, ticket: Ticket) -> None:
        """Send both legs at once and deliver the decode's answer.

        Raises:
            ApiError: to be sent to the client.
            KvLostError: both legs are needed again.
        """
        while not await self._pair(await self._prefill.next(ticket), ticket):
            pass  # the scheduler paces the attempts

    async def _pair(self, prefill: Leg, ticket: Ticket) -> bool:
        """One attempt; False: try other instances."""
        decode = self._choose(prefill, ticket)
        if decode is None:
            prefill.close()
            return False
        self._unpulled, faults = "", self._c.faults
        asked = asyncio.create_task(self._ask(prefill, decode, ticket))
        head = asyncio.create_task(self._head(prefill, decode, ticket))
        try:
            await asyncio.wait((asked, head), return_when=asyncio.FIRST_COMPLETED)
            if not any(leg.done() and leg.result() is None for leg in (asked, head)):
                held, exchange = await asked, await head
                if held is not None and exchange is not None:
                    await DecodePhase(self._c, held).deliver(decode, exchange)
                    return True
            if self._unpulled and self._c.faults == faults:
                self._prefill.others_first(prefill, ticket)
                self._c.fault(self._unpulled)
            return False
        finally:
            await self._end(asked, head, prefill, decode)

    def _choose(self, prefill: Leg, ticket: Ticket) -> Leg | None:
        """A decode of the prefill's group, if one can be asked now."""
        scheduler = self._c.scheduler
        walk = DecodeWalk(
            scheduler.view, prefill.instance, self._prefill.due(ticket), scheduler.random,
            self._failed,
        )  # fmt: skip
        step = walk.next(time.perf_counter())
        return self._c.open(step.decode) if isinstance(step, Try) else None

    async def _ask(self, prefill: Leg, decode: Leg, ticket: Ticket) -> FinishedPrefill | None:
        held = await self._prefill.ask(prefill, ticket, decode.instance.route)
        if held is not None:
            prefill.close()
        return held

    async def _head(self, prefill: Leg, decode: Leg, ticket: Ticket) -> Exchange | None:
        """The decode's reply once it has begun; None: not taken."""
        c, handoff = self._c, self._c.scheduler.scenario.slo.handoff
        attempt = c.attempt(
            c.leg_name(ticket), ticket.attempts, self._prefill.due(ticket) + handoff,
            prefill.instance.route, decode.instance.route,
        )  # fmt: skip
        patience = self._prefill.patience + 4 * handoff
        if not c.job.streamed:
            patience = c.tools.settings.whole_reply
        try:
            exchange = await c.post(decode, c.flow.decode_leg(attempt, c.decode_body), patience)
        except UpstreamError as error:
            self._failed.add(decode.instance.id)
            decode.failed(error.kind)
            c.grant_grace()
            if error.kind != "connect":
                c.fault(f"decode {decode.instance.id}: {error}")
            return None
        if c.flow.read_head(exchange.status, exchange.headers).kind == "accepted":
            return exchange
        try:
            await self._refused(decode, exchange)
        finally:
            c.done(decode, exchange)
        return None

    async def _refused(self, decode: Leg, exchange: Exchange) -> None:
        """Count a reply that is no answer; raises ApiError where no other attempt helps."""
        c, name = self._c, decode.instance.id
        answer = c.flow.read_head(exchange.status, exchange.headers)
        if answer.kind == "refused":
            decode.refused(exchange, answer.reason)
        elif answer.kind == "client_error":
            decode.answered()
            try:
                body = await exchange.read(c.tools.settings.stream_silence)
            except UpstreamError as error:
                raise c.failed(f"decode {name}: {error}") from error
            raise c.relayed_error(exchange, body)
        elif answer.kind == "kv_failed":
            decode.answered()
            c.scheduler.metrics.rejected("decode", answer.reason)
            self._failed.add(name)
            self._unpulled = f"decode {name} could not get the KV"
        else:
            self._failed.add(name)
            decode.failed("status")
            c.fault(f"decode {name} answered {exchange.status}")

    async def _end(
        self, asked: asyncio.Task[FinishedPrefill | None],
        head: asyncio.Task[Exchange | None], prefill: Leg, decode: Leg,
    ) -> None:  # fmt: skip
        """Cut what still runs of an attempt, and give back what it had."""
        asked.cancel()
        head.cancel()
        await asyncio.wait((asked, head))
        if not head.cancelled() and head.exception() is None and (exchange := head.result()):
            self._c.done(decode, exchange)
        prefill.close()
        decode.close()
