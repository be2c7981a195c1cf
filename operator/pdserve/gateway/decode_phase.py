"""Second half of a request: a decode of the prefill's group pulls the KV and generates.

Refusals and losses before the first byte go to the next decode while the prefill still holds the
KV; when that is of no use any more, `KvLostError` asks `pipeline` for a new prefill. Delivering
the bytes is `delivery`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from pdserve.engines.flow import LegRequest
from pdserve.forwarding.decode import LEASE_MARGIN, DecodeWalk, GiveUp, Wait, handoff_deadline
from pdserve.forwarding.ranking import NEVER
from pdserve.gateway.delivery import DeliveryError, collect, relay
from pdserve.gateway.errors import overloaded
from pdserve.gateway.legs import Leg
from pdserve.gateway.request_context import (
    MIN_RETRY,
    FinishedPrefill,
    KvLostError,
    RequestContext,
    StreamLostError,
)
from pdserve.http1.client import Exchange, UpstreamError

SILENCE = 2.0
"""Least seconds without a reply's head after which a streaming decode is taken for dead."""


async def deliver(
    c: RequestContext, leg: Leg, exchange: Exchange, broken: Callable[[], None]
) -> None:
    """Pass an accepted decode's reply on to the client.

    `broken` is called when it breaks off.

    Raises:
        ApiError: it broke off after it had begun, and cannot be continued.
        StreamLostError: it may be.
        KvLostError: it broke off before; only a new prefill helps.
    """
    complete = True
    try:
        if c.job.streamed:
            options = c.job.body.get("stream_options") or {}
            complete = await relay(
                exchange,
                c.reply,
                c.timeline,
                strip_usage=not options.get("include_usage"),
                silence=c.tools.settings.stream_silence,
                begun=c.begun,
                sent=c.sent,
            )
        else:
            await collect(exchange, c.reply, c.timeline, c.tools.settings.stream_silence)
    except DeliveryError as error:
        leg.failed(error.kind)
        broken()
        message = f"decode {leg.instance.id}: {error}"
        if c.reply.started and (c.sent is None or not c.sent.can_go_on):
            raise c.failed(message) from error
        if c.reply.started:
            raise StreamLostError(message) from error
        c.fault(message)
        raise KvLostError(message) from error
    leg.close()
    c.outcome = "completed" if complete else "failed"


class DecodePhase:
    """The decode legs that follow one prefill."""

    def __init__(self, context: RequestContext, held: FinishedPrefill) -> None:
        self._c = c = context
        self._held = held
        slo = c.scheduler.scenario.slo
        due = handoff_deadline(c.timeline.arrived, slo.ttft, slo.handoff, held.at)
        self._wanted_by = c.grace_handoff(held.at) if c.has_grace else due
        """Until then a decode is of use, with this KV or another prefill's."""
        self._lease_end = held.at + c.flow.lease_seconds - LEASE_MARGIN
        deadline = min(self._wanted_by, self._lease_end)
        self._prefill_at_fault = True
        """KV that cannot be pulled is the prefill's fault: no decode failed with it."""
        self._attempts = 0
        self._asked: Leg | None = None
        """The leg that has no answer yet."""
        self.due = NEVER
        """When that one is taken to have pulled (see `overdue`)."""
        self._walk = DecodeWalk(c.scheduler.view, held.leg.instance, deadline, c.scheduler.random)

    async def run(self) -> None:
        """Ask decodes until one delivers the answer.

        Raises:
            ApiError: to be sent to the client, or the reply has begun and cannot be completed.
            KvLostError: only a new prefill helps.
            StreamLostError: the client has a part, and another decode may go on.
        """
        c, slo = self._c, self._c.scheduler.scenario.slo
        patience = c.tools.settings.whole_reply
        if c.job.streamed:
            patience = max(SILENCE, 4 * slo.handoff)
        while True:
            step = self._walk.next(time.perf_counter())
            if isinstance(step, GiveUp):
                raise self._gave_up(step)
            if isinstance(step, Wait):
                await c.scheduler.changed(step.until)
                continue
            leg = c.open(step.decode)
            exchange = await self._post(leg, patience)
            if exchange is None:
                continue
            try:
                if await self._read(leg, exchange):
                    return
            finally:
                c.done(leg, exchange)

    async def _post(self, leg: Leg, patience: float) -> Exchange | None:
        """Send a leg and wait for its reply's head; None: the decode was lost."""
        c = self._c
        self._asked, self.due = leg, time.perf_counter() + c.scheduler.scenario.slo.handoff
        c.tools.pool.sweeper.add(self)
        try:
            return await c.post(
                leg, self._request(leg), patience,
                None if c.job.streamed else partial(self._pulled, leg),
            )  # fmt: skip
        except UpstreamError as error:
            leg.failed(error.kind)
            self._lost(leg, error)
            return None
        finally:
            c.tools.pool.sweeper.discard(self)

    def _request(self, leg: Leg) -> LegRequest:
        c, held = self._c, self._held
        self._attempts += 1
        attempt = c.attempt(
            held.release_id, self._attempts, self._walk.deadline,
            held.leg.instance.route, leg.instance.route, early_head=not c.job.streamed,
            token_ids=c.sent is not None,
        )  # fmt: skip
        return c.flow.decode_leg(attempt, held.decode_body)

    async def _read(self, leg: Leg, exchange: Exchange) -> bool:
        """Interpret a reply and deliver it; False: ask another decode."""
        c, patience = self._c, self._c.tools.settings.stream_silence
        answer = c.flow.read_head(exchange.status, exchange.headers)
        if answer.kind == "accepted":
            await self.deliver(leg, exchange)
            return True
        if answer.kind == "refused":
            leg.refused(exchange, answer.reason)
            return False
        if answer.kind == "client_error":
            leg.answered()
            try:
                raise c.relayed_error(exchange, await exchange.read(patience))
            except UpstreamError as error:
                raise c.failed(f"decode {leg.instance.id}: {error}") from error
        self._walk.kv_failed()
        if answer.kind == "kv_failed":
            leg.answered()
            c.scheduler.metrics.rejected("decode", answer.reason)
        else:
            leg.failed("status")
            c.fault(f"decode {leg.instance.id} answered {exchange.status}")
        return False

    async def deliver(self, leg: Leg, exchange: Exchange) -> None:
        """Pass an accepted leg's reply on to the client.

        Raises:
            ApiError: the reply broke off after it had begun, and cannot be continued.
            StreamLostError: it may be.
            KvLostError: it broke off before; only a new prefill helps.
        """
        c = self._c
        leg.accepted(exchange)
        self._held.leg.close()
        if c.sent is not None and c.sent.kv is None:
            c.sent.kv = self._held.outcome.kv
        c.held, self._held.decode_body = None, b""
        c.tell(self._held.leg, leg)
        if c.job.streamed:
            now = time.perf_counter()
            c.scheduler.handoff.learn(now - self._held.at, now)
        await deliver(c, leg, exchange, self._release)

    def overdue(self) -> None:
        """The decode has neither refused nor sent a head within the handoff target.

        It pulls by then: assume so, or a reply that is not streamed would seem to hold the
        prefill's slot until its end.
        """
        self.due = NEVER
        if self._asked is not None:
            self._taken(self._asked)

    def _taken(self, leg: Leg) -> None:
        leg.taken()
        self._held.leg.close()

    def _pulled(self, leg: Leg, _: Exchange) -> None:
        """Early head: the KV is at this decode and nowhere else."""
        self._taken(leg)
        self._c.held = None

    def _release(self) -> None:
        """Free the prefill's KV: a decode that reported the pull broke off, maybe before it."""
        c, held = self._c, self._held
        c.tools.releaser.release(c.flow, held.leg.instance, held.release_id)

    def _lost(self, leg: Leg, error: UpstreamError) -> None:
        """A decode was lost: the request waits for another as one that lost its prefill does."""
        c, message = self._c, f"decode {leg.instance.id}: {error}"
        if c.held is None:
            self._release()
        if error.kind != "connect":
            self._prefill_at_fault = False
            self._walk.kv_failed()  # it may have pulled the KV before it died
            c.fault(message)
        if c.held is None:
            raise KvLostError(message) from error
        c.grant_grace()
        self._wanted_by = c.grace_handoff(self._held.at)
        self._walk.deadline = min(self._wanted_by, self._lease_end)

    def _gave_up(self, step: GiveUp) -> Exception:
        c, prefill = self._c, self._held.leg.instance
        if step.reason == "kv_lost":
            message = f"no decode could pull the KV from {prefill.id}"
            return KvLostError(message, prefill if self._prefill_at_fault else None)
        if step.reason == "no_decode":
            return KvLostError(f"no decode of group {prefill.group} is left")
        if time.perf_counter() < self._wanted_by and not c.repeated:
            message = f"no decode of group {prefill.group} had room before the KV's lease ended"
            return KvLostError(message)
        c.scheduler.metrics.expired("after_prefill")
        c.outcome = "decode_overload"
        now, slo = time.perf_counter(), c.scheduler.scenario.slo
        group = c.scheduler.view.group(prefill.group)
        free = min((d.expected_free(now) for d in group.decodes), default=now) if group else now
        return overloaded(
            "decode_overload",
            f"scenario {c.scheduler.scenario.name!r}: no decode of group {prefill.group} "
            "had room in time",
            max(MIN_RETRY, free - now),
            free - now,
            c.timeline.arrived + slo.ttft + slo.handoff - now,
        )
