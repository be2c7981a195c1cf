"""One request through prefill and decode: the gateway's only story with a beginning and an end.

1. Admit: the latest time at which a prefill may accept (infeasible: refused at once).
2. Prefill: wait in the lane, ask whom it names, until one has accepted and answered.
3. If token 1 ended the request, answer from the prefill's reply.
4. Decode: a decode of the same group pulls the KV; refusals go to the next one.
5. Relay the stream as received, measured; or collect the reply and send it whole.

A fault before the first byte to the client is repaired: another prefill, another decode, or once a
new prefill (within the retry budget). The request then gets its deadlines again, as if it had
just arrived: it has missed its target through no fault of its own, and a late answer is better
than none. After the first byte nothing is retried; the stream ends with an error event.

Whatever happens, legs are closed, KV is released and the request is counted once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from pdserve.engines.flow import Endpoint, EngineFlow, FlowError, PrefillOutcome
from pdserve.forwarding.deadline import (
    SAFETY,
    PromptSize,
    admission_deadline,
    predict_prefill,
    prompt_size,
)
from pdserve.forwarding.decode import LEASE_MARGIN, DecodeWalk, GiveUp, Wait, handoff_deadline
from pdserve.forwarding.dispatch import Ticket
from pdserve.gateway.delivery import DeliveryError, collect, relay
from pdserve.gateway.errors import ApiError, overloaded, upstream
from pdserve.gateway.http_client import Exchange, Pool, UpstreamError
from pdserve.gateway.http_server import Headers, Reply
from pdserve.gateway.lane import ExpiredError, Lane
from pdserve.gateway.legs import Leg, read_answer
from pdserve.gateway.measure import Outcome, Timeline
from pdserve.gateway.release import Releaser
from pdserve.wire.http import (
    HEADER_DEADLINE_MS,
    HEADER_REQUEST_ID,
    PATH_CHAT,
    PATH_COMPLETIONS,
    REJECT_DEADLINE,
)

_PATHS: dict[Endpoint, str] = {"chat": PATH_CHAT, "completions": PATH_COMPLETIONS}
ENGINE_FAILURES = 2
"""Prefills that may answer one request with 5xx before the client gets 502: a request that
breaks engines must not be shown to all of them."""

LATE_ANSWERS = 2
"""Prefills that may refuse one request because it cannot meet its deadline there."""
LOST_TIME = 0.1
"""Seconds at a prefill that then failed, from which on a request gets its deadline again."""


class KvLostError(Exception):
    """The prefill's work is gone before the client got a byte; only a new prefill helps."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a request is, before anything was done for it."""

    endpoint: Endpoint
    body: Mapping[str, Any]
    """Checked, and with the model name the engines serve."""
    request_id: str
    trace: Headers
    """Headers passed on to both legs (trace context)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Bounds of one request, in seconds."""

    stream_silence: float = 60.0
    """A stream without any byte for this long is taken for dead."""
    whole_reply: float = 600.0
    """Wait for the head of a reply that is not streamed."""


@dataclass(slots=True)
class Held:
    """A finished prefill: its leg keeps a slot until the KV is pulled or released."""

    leg: Leg
    outcome: PrefillOutcome
    release_id: str
    at: float


class Pipeline:
    """Carries one request; make one per request and `await run()`."""

    def __init__(
        self, lane: Lane, flow: EngineFlow, pool: Pool, releaser: Releaser, settings: Settings,
        job: Job, reply: Reply, arrived: float, leg_name: str,
    ) -> None:  # fmt: skip
        self._lane = lane
        self._flow = flow
        self._pool = pool
        self._releaser = releaser
        self._settings = settings
        self._job = job
        self._reply = reply
        self._leg_name = leg_name
        self._streamed = bool(job.body.get("stream"))
        self.timeline = Timeline(arrived, self._streamed)
        self._size: PromptSize = prompt_size(job.body)
        self._predicted = 0.0
        self._legs: list[Leg] = []
        self._held: Held | None = None
        self._rescued = False
        self._repeated = False
        self._engine_failures = 0
        self._late = 0
        self._invalid = False
        self.outcome: Outcome | None = None
        """None: not offered (invalid, or the client left in time)."""

    async def run(self) -> None:
        """Serve the request; raises ApiError for the caller to send, and CancelledError."""
        try:
            await self._run()
        except asyncio.CancelledError:
            self._left()
            raise
        except Exception:
            if self.outcome is None and not self._invalid:
                self.outcome = "failed"
            raise
        finally:
            for leg in self._legs:
                leg.close()
            self._release()
            if self.outcome is not None:
                now = time.perf_counter()
                self._lane.metrics.finish(self.timeline, self.outcome, now, self._lane.scenario)

    async def _run(self) -> None:
        ticket = self._admit()
        while True:
            held = self._held = await self._prefill(ticket)
            if held.outcome.finished:
                self._answer(held)
                return
            try:
                await self._decode(held)
                return
            except KvLostError as error:
                self._release()
                if self._repeated or not self._lane.budget.take():
                    raise self._failed(str(error)) from error
                self._repeated = True
                self._rescue(ticket)

    # --- 1. admit ---------------------------------------------------------------------------

    def _admit(self) -> Ticket:
        lane, scenario = self._lane, self._lane.scenario
        tokens = lane.estimate.tokens(self._size)
        self._predicted = predict_prefill(scenario.prefill_seconds, tokens)
        lane.budget.earn()
        now = time.perf_counter()
        deadline = admission_deadline(self.timeline.arrived, scenario.slo.ttft, self._predicted)
        if deadline <= now:
            lane.metrics.expired("arrival")
            self.outcome = "expired"
            raise overloaded(
                "deadline_infeasible",
                f"scenario {scenario.name!r}: prefill of about {tokens:.0f} tokens takes about "
                f"{self._predicted:.2f} s, more than the TTFT target of {scenario.slo.ttft:g} s",
                lane.dispatcher.retry_after(now),
            )
        ticket = lane.dispatcher.offer(deadline)
        if ticket is None:
            lane.metrics.expired("arrival")
            self.outcome = "expired"
            raise overloaded(
                "waiting_room_full",
                f"scenario {scenario.name!r}: {lane.dispatcher.waiting} requests wait already",
                lane.dispatcher.retry_after(now),
            )
        return ticket

    # --- 2. prefill -------------------------------------------------------------------------

    async def _prefill(self, ticket: Ticket) -> Held:
        body = self._flow.prefill_body(self._job.endpoint, self._job.body)
        patience = max(3 * self._lane.scenario.slo.ttft, 4 * self._predicted) + 1.0
        while True:
            try:
                send = await self._lane.prefill(ticket)
            except ExpiredError as error:
                raise self._expired(error) from error
            leg = self._open(send.prefill)
            name = f"{self._leg_name}-{ticket.attempts}"
            try:
                due = ticket.deadline + SAFETY * self._predicted
                exchange = await self._post(leg, body, name, due, patience)
            except UpstreamError as error:
                leg.failed(error.kind)
                self._rescue_if_late(leg, ticket)
                continue
            try:
                held = await self._read_prefill(leg, exchange, name, ticket)
            finally:
                self._pool.done(leg.instance.route.endpoint, exchange)
            if held is not None:
                return held

    async def _read_prefill(
        self, leg: Leg, exchange: Exchange, name: str, ticket: Ticket
    ) -> Held | None:
        """Interpret the reply; None: ask another prefill."""
        answer = read_answer(exchange)
        if answer.kind == "refused":
            leg.refused(exchange, answer.reason)
            if answer.reason == REJECT_DEADLINE:
                self._too_late()
            return None
        try:
            body = await exchange.read()
            if answer.kind == "client_error":
                leg.answered()
                raise self._relayed_error(exchange, body)
            if answer.kind == "accepted":
                outcome = self._flow.read_prefill(self._job.body, body)
                leg.accepted(exchange)
                return self._keep(leg, outcome, name)
            message = f"{leg.instance.id} answered {exchange.status}"
        except UpstreamError as error:
            leg.failed(error.kind)
            self._rescue_if_late(leg, ticket)
            return None
        except FlowError as error:
            message = f"{leg.instance.id}: {error}"
        leg.failed("status")
        self._engine_failures += 1
        if self._engine_failures >= ENGINE_FAILURES:
            raise self._failed(f"prefill failed: {message}")
        return None

    def _too_late(self) -> None:
        """A prefill had room but not the time; two of them saying so is an answer."""
        self._late += 1
        if self._late >= min(LATE_ANSWERS, self._lane.view.prefill_count):
            raise self._expired(ExpiredError("deadline"))

    def _keep(self, leg: Leg, outcome: PrefillOutcome, name: str) -> Held:
        now = time.perf_counter()
        self.timeline.prompt_tokens = outcome.prompt_tokens
        self.timeline.cached_tokens = outcome.cached_tokens
        self._lane.estimate.learn(self._size, outcome.prompt_tokens)
        if not self._streamed:
            self.timeline.first = now
        return Held(leg, outcome, outcome.release_id or name, now)

    # --- 3. finished at token 1 -------------------------------------------------------------

    def _answer(self, held: Held) -> None:
        final = self._flow.finished_reply(self._job.endpoint, self._job.body, held.outcome)
        self.timeline.first = self.timeline.last = time.perf_counter()
        self.timeline.output_tokens = final.completion_tokens
        if self._streamed:
            self._reply.start(200, final.content_type, final.body)
            self._reply.end()
        else:
            self._reply.send(200, final.body, final.content_type)
        self.outcome = "completed"

    # --- 4. decode --------------------------------------------------------------------------

    async def _decode(self, held: Held) -> None:
        lane, slo = self._lane, self._lane.scenario.slo
        lease_end = held.at + self._flow.lease_seconds - LEASE_MARGIN
        due = handoff_deadline(self.timeline.arrived, slo.ttft, slo.handoff, held.at)
        walk = DecodeWalk(lane.view, held.leg.instance, min(due, lease_end), lane.random)
        body = self._flow.decode_body(self._job.body, held.outcome)
        silence = max(2.0, 4 * slo.handoff)
        patience = silence if self._streamed else self._settings.whole_reply
        while True:
            step = walk.next(time.perf_counter())
            if isinstance(step, GiveUp):
                raise self._no_decode(step, held)
            if isinstance(step, Wait):
                await lane.changed(step.until)
                continue
            leg = self._open(step.decode)
            # A decode that does not refuse pulls within the handoff target: believe so, or a
            # reply that is not streamed would seem to hold the prefill's slot until its end.
            pulled = asyncio.get_running_loop().call_later(slo.handoff, held.leg.close)
            try:
                exchange = await self._post(leg, body, held.release_id, walk.deadline, patience)
            except UpstreamError as error:
                leg.failed(error.kind)
                if not self._rescued:
                    self._rescued = True
                    again = time.perf_counter() + slo.ttft + slo.handoff
                    walk.deadline = min(lease_end, max(walk.deadline, again))
                continue
            finally:
                pulled.cancel()
            try:
                if await self._read_decode(leg, exchange, walk, held):
                    return
            finally:
                self._pool.done(leg.instance.route.endpoint, exchange)

    async def _read_decode(
        self, leg: Leg, exchange: Exchange, walk: DecodeWalk, held: Held
    ) -> bool:
        """Interpret the reply and deliver it; False: ask another decode."""
        answer = read_answer(exchange)
        if answer.kind == "accepted":
            leg.accepted(exchange)
            held.leg.close()
            self._held = None
            await self._deliver(leg, exchange)
            return True
        if answer.kind == "refused":
            leg.refused(exchange, answer.reason)
            return False
        if answer.kind == "client_error":
            leg.answered()
            try:
                raise self._relayed_error(exchange, await exchange.read())
            except UpstreamError as error:
                raise self._failed(f"decode {leg.instance.id}: {error}") from error
        walk.kv_failed()
        if answer.kind == "kv_failed":
            leg.answered()
            self._lane.metrics.rejected("decode", answer.reason)
        else:
            leg.failed("status")
        return False

    def _no_decode(self, step: GiveUp, held: Held) -> Exception:
        if step.reason == "kv_lost":
            held.leg.close()
            return KvLostError(f"no decode could pull the KV from {held.leg.instance.id}")
        if step.reason == "deadline":
            self._lane.metrics.expired("after_prefill")
        self.outcome = "decode_overload"
        return overloaded(
            "decode_overload",
            f"scenario {self._lane.scenario.name!r}: no decode of group "
            f"{held.leg.instance.group} had room in time",
            self._lane.dispatcher.retry_after(time.perf_counter()),
        )

    # --- 5. deliver -------------------------------------------------------------------------

    async def _deliver(self, leg: Leg, exchange: Exchange) -> None:
        complete = True
        try:
            if self._streamed:
                options = self._job.body.get("stream_options") or {}
                complete = await relay(
                    exchange,
                    self._reply,
                    self.timeline,
                    strip_usage=not options.get("include_usage"),
                    silence=self._settings.stream_silence,
                )
            else:
                await collect(exchange, self._reply, self.timeline)
        except DeliveryError as error:
            leg.failed(error.kind)
            message = f"decode {leg.instance.id}: {error}"
            if self._reply.started:
                raise self._failed(message) from error
            raise KvLostError(message) from error
        leg.close()
        self.outcome = "completed" if complete else "failed"

    # --- helpers ----------------------------------------------------------------------------

    def _open(self, instance: Any) -> Leg:
        leg = Leg(self._lane, instance)
        self._legs.append(leg)
        return leg

    async def _post(
        self, leg: Leg, body: bytes, name: str, deadline: float, patience: float
    ) -> Exchange:
        left = max(1, int((deadline - time.perf_counter()) * 1000))
        headers = (
            (HEADER_REQUEST_ID.encode(), name.encode()),
            (HEADER_DEADLINE_MS.encode(), str(left).encode()),
            *self._job.trace,
        )
        path = _PATHS[self._job.endpoint]
        return await self._pool.post(leg.instance.route.endpoint, path, body, headers, patience)

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None and held.outcome.kv is not None:
            self._releaser.release(held.leg.instance, held.release_id)

    def _rescue_if_late(self, leg: Leg, ticket: Ticket) -> None:
        if time.perf_counter() - leg.sent_at > LOST_TIME:
            self._rescue(ticket)

    def _rescue(self, ticket: Ticket) -> None:
        """A fault cost the request its time: deadlines start anew, once."""
        if not self._rescued:
            self._rescued = True
            slo = self._lane.scenario.slo
            again = admission_deadline(time.perf_counter(), slo.ttft, self._predicted)
            ticket.deadline = max(ticket.deadline, again)

    def _expired(self, error: ExpiredError) -> ApiError:
        if self._rescued:
            return self._failed("an instance was lost and no other prefill took over in time")
        lane = self._lane
        lane.metrics.expired("before_prefill")
        if error.reason == "no_decode":
            self.outcome, code = "decode_overload", "decode_overload"
            why = "no group had room on its decodes"
        else:
            self.outcome, code = "expired", "deadline_exceeded"
            tries = "in time" if error.reason == "deadline" else "in the allowed attempts"
            why = f"no prefill accepted {tries}"
        return overloaded(
            code,
            f"scenario {lane.scenario.name!r}: {why} (TTFT target {lane.scenario.slo.ttft:g} s)",
            lane.dispatcher.retry_after(time.perf_counter()),
        )

    def _failed(self, message: str) -> ApiError:
        self.outcome = "failed"
        return upstream(message)

    def _relayed_error(self, exchange: Exchange, body: bytes) -> ApiError:
        """An engine's 4xx: the client's mistake, in the engine's words; not offered."""
        self._invalid = True
        return _RelayedError(exchange.status, body)

    def _left(self) -> None:
        """The client closed its connection."""
        if self.outcome is not None:
            return
        now, slo = time.perf_counter(), self._lane.scenario.slo
        reference = now if self.timeline.first is None else self.timeline.first
        if reference - self.timeline.arrived > slo.ttft:
            self.outcome = "cancelled_late"
        else:
            self._lane.metrics.client_cancelled()


class _RelayedError(ApiError):
    """An engine's own error body, passed on unchanged when it is an OpenAI error object."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(status, f"the engine answered {status}: {body[:500]!r}")
        self._body = body

    def body(self) -> bytes:
        try:
            known = isinstance(orjson.loads(self._body)["error"], dict)
        except (orjson.JSONDecodeError, KeyError, TypeError):
            known = False
        return self._body if known else super().body()
