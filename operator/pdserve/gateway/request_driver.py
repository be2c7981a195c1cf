"""Drives one `forwarding.request` with sockets and a clock: its effects, and its events.

No policy here: what is asked of whom and when is the request's. Neighbours: `leg_bodies` makes legs
and reads replies, `leg_call` is one leg on the wire, `delivery` relays a reply; `generate` and
`fan_out` begin requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from pdserve.engines.credentials import authorization
from pdserve.engines.flow import EngineFlow, FlowError
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.ranking import NEVER
from pdserve.forwarding.request.effects import (
    Bug,
    CannotGoOnError,
    ClientMistake,
    Ending,
    Failed,
    FirstTokenAnswer,
    FlowTraits,
    Refused,
    Unserved,
)
from pdserve.forwarding.request.leg import Leg
from pdserve.forwarding.request.measure import Timeline
from pdserve.forwarding.request.request import Request
from pdserve.forwarding.request.scheduler import ScenarioScheduler
from pdserve.gateway.delivery import ClientReply, StreamDelivery, check_completion
from pdserve.gateway.errors import RelayedError, overloaded, unserved, upstream
from pdserve.gateway.job import Job, Tools
from pdserve.gateway.leg_bodies import LegBodies
from pdserve.gateway.leg_call import LegCall
from pdserve.gateway.sent_stream import SentStream
from pdserve.gateway.sse import StreamError
from pdserve.gateway.timed_scheduler import TimedScheduler
from pdserve.http1.client import Exchange
from pdserve.http1.errors import ApiError
from pdserve.terms.failures import Failure
from pdserve.terms.json import JsonObject
from pdserve.wire.calls import HEADER_DECODE, HEADER_PREFILL

_PREFILL, _DECODE = HEADER_PREFILL.encode(), HEADER_DECODE.encode()


def _nothing(_: Exception | None) -> None:
    """No caller waits for the end of this request."""


def _flows() -> None:
    """No instance has to wait for this client."""


class RequestDriver:
    """The driver of one request; `served` or `start` begins it."""

    def __init__(
        self, scheduler: TimedScheduler, flow: EngineFlow, tools: Tools, job: Job,
        reply: ClientReply, arrived: float,
    ) -> None:  # fmt: skip
        self.reply = reply
        self.on_end: Callable[[Exception | None], None] = _nothing
        """Called when the request has ended, with the error that its client has to get."""
        self._tools, self._job = tools, job
        self._bodies = LegBodies(flow, job)
        streamed, traits = job.streamed, self._bodies.traits()
        self._sent = SentStream(tools.kept) if streamed and traits.continues else None
        """What the client has of a stream that can be continued."""
        self.request = Request(
            scheduler, self, traits, tools.settings, job.leg_name, job.size, job.turn,
            Timeline(arrived, streamed),
        )  # fmt: skip
        self._calls: dict[Leg, LegCall] = {}
        self._mistake: ApiError | None = None
        self._stream: StreamDelivery | None = None
        self._delivered: StreamDelivery | None = None
        """The stream, once all of it is there."""
        self._whole: bytes | None = None
        """A reply that is not streamed, once all of it is there."""
        self._end: bytes | None = None
        """What is missing of a stream whose decode was lost."""
        self._headers = reply.headers

    def start(self) -> None:
        """Begin; `on_end` is called when the request has ended, perhaps before this returns.

        Raises:
            FlowError: no leg can be made of this request.
        """
        # The body is made before the request has a place in the room: what fails here costs no
        # other request.
        self._bodies.prepare()
        now = time.perf_counter()
        try:
            self.request.on_arrival(now)
        except Exception as error:
            self.request.on_bug(error, now)

    async def served(self) -> None:
        """Begin, and wait until the request has ended.

        Raises:
            ApiError: for the caller to send.
            CancelledError: the client left.
            FlowError: no leg can be made of this request.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        end = _End(done)
        self.on_end = end.note
        self.start()
        try:
            await done
        except asyncio.CancelledError:
            self.client_left()
            raise
        end.check()

    def client_left(self) -> None:
        """The client closed its connection."""
        if self._stream is not None:
            self._stream.note(self.request.timeline)
        self.request.on_client_gone(time.perf_counter())

    # --- effects ---

    def send(self, leg: Leg) -> None:
        """See `Effects`."""
        try:
            self._send(leg)
        except Exception as error:
            self.leg_bug(error)

    def read(self, leg: Leg, silence: float) -> None:
        """See `Effects`."""
        self._calls[leg].listen(silence, pieces=False)

    def deliver(self, leg: Leg, silence: float) -> None:
        """See `Effects`."""
        call, sent, streamed = self._calls[leg], self._sent, self.request.streamed
        exchange = call.exchange
        self._bodies.decode_sent()
        if sent is not None and (sent.kv is None or leg.kind == "local"):
            sent.kv = self._bodies.kv
        self._tell(leg.source, leg)
        if streamed and exchange is not None:
            options = self._job.body.get("stream_options") or {}
            content_type = exchange.headers.get(b"content-type", b"text/event-stream")
            self._stream = StreamDelivery(
                self.reply, content_type.decode("latin-1"),
                strip_usage=not options.get("include_usage"), begun=self._begun, sent=sent,
            )  # fmt: skip
            self.reply.on_flow(exchange.pause, exchange.resume)
        call.listen(silence, pieces=streamed)

    def drop(self, leg: Leg) -> bool:
        """See `Effects`."""
        call = self._calls.pop(leg, None)
        if call is None:
            return False
        if leg.overdue_at < NEVER and not leg.answer:
            self._tools.pool.sweeper.discard(call)
        return self._tools.pool.end(call)

    def release(self, prefill: Instance, name: str) -> None:
        """See `Effects`."""
        self._tools.releaser.release(self._bodies.flow, prefill, name)

    def complete_stream(self) -> bool:
        """See `Effects`.

        Raises:
            CannotGoOnError: nothing can be made of what the client has.
        """
        sent, line = self._sent, self.request.timeline
        if sent is None or not sent.can_go_on:
            raise CannotGoOnError("")
        options, prompt = self._job.body.get("stream_options") or {}, line.prompt_tokens
        usage: JsonObject = {
            "prompt_tokens": prompt,
            "completion_tokens": sent.count,
            "total_tokens": prompt + sent.count,
            "prompt_tokens_details": {"cached_tokens": line.cached_tokens},
        }
        try:
            self._end = sent.end(usage if options.get("include_usage") else None)
        except ValueError as error:
            raise CannotGoOnError(f"the stream cannot be continued: {error}") from error
        if self._end is not None:
            line.output_tokens = sent.count
        return self._end is not None

    def go_on(self) -> int:
        """See `Effects`."""
        return self._bodies.go_on(self._sent)

    def move(self) -> tuple[ScenarioScheduler, FlowTraits] | None:
        """See `Driver`."""
        found = self._tools.another(self.request.scheduler.scenario.name, self._job.model)
        if found is None:
            return None
        try:
            self._bodies = self._bodies.of_another(found[1], found[2])
        except FlowError:
            return None  # the other engine cannot take this request
        return found[0], self._bodies.traits()

    def ended(self, ending: Ending) -> None:
        """See `Effects`."""
        if self._sent is not None:
            self._sent.close()
        error: Exception | None = None
        if ending is None:
            self._finish()
        elif isinstance(ending, FirstTokenAnswer):
            self._answer()
        elif isinstance(ending, Refused):
            error = overloaded(*ending)
        elif isinstance(ending, Unserved):
            error = unserved(ending.message)
        elif isinstance(ending, Failed):
            error = upstream(ending.message)
        elif isinstance(ending, ClientMistake):
            error, self._mistake = self._mistake, None
        elif isinstance(ending, Bug):
            error = ending.error
        self._bodies.close()
        self._stream = self._delivered = self._whole = None
        on_end, self.on_end = self.on_end, _nothing
        on_end(error)

    # --- legs ---

    def leg_headed(self, call: LegCall, exchange: Exchange) -> None:
        """See `LegEvents`."""
        leg = call.leg
        if leg.overdue_at < NEVER:
            self._tools.pool.sweeper.discard(call)
        head = self._bodies.read_head(leg, exchange.status, exchange.headers)
        self.request.on_head(leg, head, time.perf_counter())

    def leg_interim(self, call: LegCall) -> None:
        """See `LegEvents`."""
        self.request.on_interim(call.leg, time.perf_counter())

    def leg_piece(self, call: LegCall, data: bytes) -> None:
        """See `LegEvents`."""
        stream, exchange = self._stream, call.exchange
        if stream is None or exchange is None:
            return
        try:
            stream.take(data, time.perf_counter(), last=exchange.complete)
        except StreamError as error:
            self.leg_failed(call, "status", str(error))

    def leg_completed(self, call: LegCall, exchange: Exchange) -> None:
        """See `LegEvents`."""
        leg = call.leg
        if leg.answer != "accepted":
            self._read_error(leg, exchange)
        elif leg.kind == "prefill":
            self._read_prefill(leg, exchange.body())
        elif self._stream is not None:
            self._end_stream(call, self._stream)
        else:
            self._end_whole(call, exchange.body())

    def leg_failed(self, call: LegCall, kind: Failure, message: str) -> None:
        """See `LegEvents`."""
        self.drop(call.leg)
        if self._stream is not None:
            self._stream.note(self.request.timeline)
            self._stream = None
        self.request.on_lost(call.leg, kind, message, time.perf_counter())

    def leg_overdue(self, call: LegCall) -> None:
        """See `LegEvents`."""
        self._tools.pool.sweeper.discard(call)
        self.request.on_overdue(call.leg, time.perf_counter())

    def leg_bug(self, error: Exception) -> None:
        """See `LegEvents`."""
        self.request.on_bug(error, time.perf_counter())

    # --- internals ---

    def _send(self, leg: Leg) -> None:
        tools, spans = self._tools, self._job.spans
        call = self._calls[leg] = LegCall(leg, self)
        request = self._bodies.of_leg(leg, self.request.scheduler)
        headers = (*request.headers, authorization(tools.credential))
        if spans is not None:
            headers = (*headers, *spans.leg_headers(leg))
        if leg.overdue_at < NEVER:
            tools.pool.sweeper.add(call)
        endpoint = leg.instance.route.endpoint
        tools.pool.send(call, endpoint, request.path, request.body, headers, leg.patience)

    def _read_error(self, leg: Leg, exchange: Exchange) -> None:
        """All of a reply that is no success is there."""
        lacks_local = False
        if leg.answer == "client_error":
            body = exchange.body()
            self._mistake = RelayedError(exchange.status, body)
            lacks_local = leg.kind == "local" and self._bodies.lacks_local(body)
        self.request.on_read(leg, time.perf_counter(), lacks_local=lacks_local)

    def _read_prefill(self, leg: Leg, reply: bytes) -> None:
        try:
            said = self._bodies.read_prefill(reply)
        except FlowError as error:
            self.request.on_unreadable(leg, str(error), time.perf_counter())
            return
        self.request.on_prefilled(leg, said, time.perf_counter())

    def _end_stream(self, call: LegCall, stream: StreamDelivery) -> None:
        try:
            stream.finish()
        except StreamError as error:
            self.leg_failed(call, "status", str(error))
            return
        stream.note(self.request.timeline)
        self._stream, self._delivered = None, stream
        # The connection may serve another request when the last bytes are written.
        self.reply.on_flow(_flows, _flows)
        self.request.on_delivered(call.leg, time.perf_counter(), whole=stream.whole)

    def _end_whole(self, call: LegCall, body: bytes) -> None:
        line = self.request.timeline
        problem = check_completion(body, line)
        if problem:
            self.leg_failed(call, "status", problem)
            return
        self._whole = body
        now = line.last = time.perf_counter()
        self.request.on_delivered(call.leg, now, whole=True)

    def _begun(self) -> None:
        """The client has bytes."""
        self.request.on_begun()
        self._bodies.begun(self._sent)
        self.reply.body_done()

    def _finish(self) -> None:
        """Write what completes the client's reply, if it is complete."""
        if self._delivered is not None:
            self._delivered.end()
        elif self._whole is not None:
            self.reply.send(200, self._whole, "application/json")
        elif self._end is not None:
            self.reply.end(self._end)

    def _answer(self) -> None:
        """Answer from a prefill's reply alone."""
        final, reply = self._bodies.final, self.reply
        if final is None:
            return
        self._tell(self.request.legs[-1], None)
        if reply.started:
            reply.end(final.body)
        elif self.request.streamed:
            reply.start(200, final.content_type, final.body, ends=True)
        else:
            reply.send(200, final.body, final.content_type)

    def _tell(self, prefill: Leg | None, decode: Leg | None) -> None:
        """Let the reply name the instances behind it (the last ones, where some were lost)."""
        headers = self._headers
        if prefill is not None:
            headers = (*headers, (_PREFILL, prefill.instance.id.encode()))
        if decode is not None:
            headers = (*headers, (_DECODE, decode.instance.id.encode()))
        self.reply.headers = headers


class _End:
    """The end of a request that a coroutine waits for."""

    def __init__(self, done: asyncio.Future[None]) -> None:
        self._done = done
        self._error: Exception | None = None

    def note(self, error: Exception | None) -> None:
        """Note it, with the error that the client has to get."""
        self._error = error
        if not self._done.done():
            self._done.set_result(None)

    def check(self) -> None:
        """Raise the error, if there is one."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # it refers to this frame
