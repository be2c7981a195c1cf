"""What the phases of one request share: its parts, its legs, its outcome, and the time
that it gets after a fault.

Neighbours: `pipeline` runs the request, `prefill_phase` and `decode_phase` are its two long phases.
No decisions about instances here; those are `forwarding`'s, asked through the scheduler.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import orjson

from pdserve.engines.credentials import Credential, authorization
from pdserve.engines.flow import (
    Endpoint,
    EngineFlow,
    FinishedReply,
    FlowError,
    LegAttempt,
    LegRequest,
    PrefillOutcome,
    continuing,
)
from pdserve.forwarding.deadline import SAFETY, PromptSize, predict_prefill
from pdserve.forwarding.dispatch import Ticket
from pdserve.forwarding.fair_turns import NO_CLIENT, Turn
from pdserve.forwarding.instance import Instance
from pdserve.gateway.delivery import ClientReply
from pdserve.gateway.errors import upstream
from pdserve.gateway.legs import Leg
from pdserve.gateway.measure import Outcome, Timeline
from pdserve.gateway.release import Releaser
from pdserve.gateway.request_trace import RequestTrace
from pdserve.gateway.scenario_scheduler import ScenarioScheduler
from pdserve.gateway.sent_stream import KeptMemory, SentStream
from pdserve.http1.client import Exchange
from pdserve.http1.errors import ApiError, Headers
from pdserve.http1.pool import Pool
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.wire.calls import HEADER_DECODE, HEADER_PREFILL
from pdserve.wire.routes import RouteInstance

MAX_FAULTS = 2
"""Instances that may fail or lose one request before the client gets 502: a request that breaks
instances must not be shown to all of them."""
GRACE_TARGETS = 10.0
"""A request that lost an instance waits for another for so many TTFT targets: late is better than
never, but a client that waits for a first token in a second has no use for one after thirty."""
GRACE_SECONDS = (5.0, 30.0)
"""At least and at most; never less than one TTFT target."""


MIN_RETRY = 0.05
"""Seconds; sooner nothing can have changed."""


def grace_seconds(ttft: float) -> float:
    """How long a request that lost an instance waits for another; `ttft`: its target, seconds."""
    least, most = GRACE_SECONDS
    return max(ttft, min(most, max(least, GRACE_TARGETS * ttft)))


class StreamLostError(Exception):
    """A decode was lost in the middle of a stream that another one can continue."""


class KvLostError(Exception):
    """The prefill's work is of no use before the client got a byte; only a new prefill helps.

    `prefill`: the one that lost it, if it was a prefill's fault.
    """

    def __init__(self, message: str, prefill: Instance | None = None) -> None:
        super().__init__(message)
        self.prefill = prefill


@dataclass(slots=True)
class Job:
    """What a request is, before anything was done for it."""

    endpoint: Endpoint
    body: JsonMap
    """Checked, and with the model name the engines serve; little of it is left once the client has
    bytes."""
    leg_name: str
    """Prefix of the request ids that engines see; unique in the service."""
    trace: Headers
    """Headers passed on to both legs (trace context)."""
    size: PromptSize
    """Of its prompt."""
    memory: int = 0
    """About how many bytes `body` takes, also where other choices have the same prompt."""
    turn: Turn = NO_CLIENT
    """Whose it is, and of which class."""
    spans: RequestTrace | None = None
    """Gives each leg its own trace context, in place of `trace`."""

    @property
    def streamed(self) -> bool:
        """The client wants a stream."""
        return bool(self.body.get("stream"))


@dataclass(frozen=True, slots=True)
class Settings:
    """Bounds of one request, in seconds."""

    stream_silence: float = 60.0
    """A reply that has begun and brings no byte for this long is taken for dead."""
    whole_reply: float = 600.0
    """Wait for the head of a reply that is not streamed."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What every request of a process uses."""

    pool: Pool
    releaser: Releaser
    credential: Credential
    settings: Settings
    kept: KeptMemory = field(default_factory=KeptMemory)
    """What open streams keep, so that they can be continued."""


@dataclass(slots=True)
class FinishedPrefill:
    """A finished prefill: its leg keeps a slot until the KV is pulled or released."""

    leg: Leg
    outcome: PrefillOutcome
    final: FinishedReply | None
    """The client's answer when token 1 ended the request."""
    decode_body: bytes
    """What the decode legs share, if there are any."""
    release_id: str
    at: float


class RequestContext:
    """State of one request."""

    def __init__(
        self,
        scheduler: ScenarioScheduler,
        flow: EngineFlow,
        tools: Tools,
        job: Job,
        reply: ClientReply,
        arrived: float,
    ) -> None:
        self.scheduler = scheduler
        self.flow = flow
        self.tools = tools
        self.job = job
        self.reply = reply
        self.timeline = Timeline(arrived, job.streamed)
        self.size = job.size
        self.predicted = 0.0
        """Expected T_p in seconds; 0 when the route table cannot say."""
        self.ticket: Ticket | None = None
        """Its place in the waiting room; `close` gives it up however the request ends."""
        self.trial = False
        """Predicted to be late and tried: engines do not get the deadline, and compute it."""
        self.held: FinishedPrefill | None = None
        self._faults = 0
        self.prefill_body = b""
        """What the prefill legs share; empty once one was accepted."""
        self.decode_body = b""
        """What the decode legs share, where they go out with the prefill legs."""
        self.grace_until = 0.0
        """A fault gave this request its deadlines anew: until then it may wait for another
        prefill, and for a decode from then on; 0: none did."""
        self.invalid = False
        """An engine found the request itself wrong: not offered."""
        self.outcome: Outcome | None = None
        """None: not offered (invalid, or the client left in time)."""
        self.repeated = 0
        """Second prefills that were spent on it."""
        self.continued = 0
        """Decodes that were lost after the client had bytes, and replaced by another."""
        self.sent: SentStream | None = None
        """What the client has of a stream that can be continued."""
        if job.streamed and continuing(flow) is not None:
            self.sent = SentStream(tools.kept)
        self.legs: list[Leg] = []
        self._headers = reply.headers

    def begun(self) -> None:
        """The client has bytes: of the body is left what another decode needs to go on."""
        self.prefill_body = self.decode_body = b""
        if self.sent is None or not self.sent.keep(self.job.memory):
            self.job.body = _ends(self.job.body)
        self.reply.body_done()

    def repeat(self) -> bool:
        """Spend a second prefill on this request; False: there is none to spend."""
        spent = self.scheduler.budget.take()
        self.repeated += spent
        return spent

    def write_end(self) -> bool:
        """Write what is missing of a stream whose client has all tokens; False: tokens are.

        Raises:
            FlowError: the engine's events are none.
        """
        sent = self.sent
        if sent is None:
            return False
        options, prompt = self.job.body.get("stream_options") or {}, self.timeline.prompt_tokens
        usage: JsonObject = {
            "prompt_tokens": prompt,
            "completion_tokens": sent.count,
            "total_tokens": prompt + sent.count,
            "prompt_tokens_details": {"cached_tokens": self.timeline.cached_tokens},
        }
        try:
            end = sent.end(usage if options.get("include_usage") else None)
        except ValueError as error:
            raise FlowError(f"the stream cannot be continued: {error}") from error
        if end is None:
            return False
        self.timeline.output_tokens = sent.count
        self.reply.end(end)
        return True

    def go_on(self) -> None:
        """Make the request anew such that it goes on after what the client has.

        Raises:
            FlowError: the engine cannot go on with it.
        """
        flow, sent = continuing(self.flow), self.sent
        if flow is None or sent is None or sent.kv is None:
            raise FlowError("the stream cannot be continued")
        try:
            part = sent.part()
        except ValueError as error:
            raise FlowError(f"the stream cannot be continued: {error}") from error
        self.job.body = flow.continued(self.job.body, sent.kv, part)
        self.continued += 1
        self.predict(self.timeline.prompt_tokens + sent.count)
        self.grace_until = 0.0  # a fault of before has nothing to do with this one
        self.grant_grace()

    def predict(self, tokens: float) -> None:
        """Set `predicted` for a prefill of so many tokens."""
        scheduler = self.scheduler
        predicted = predict_prefill(scheduler.scenario.prefill_seconds, tokens)
        self.predicted = min(predicted, scheduler.prefill_times.at_most(tokens))

    def tell(self, prefill: Leg | None, decode: Leg | None) -> None:
        """Let the reply name the instances behind it (the last ones, where some were lost)."""
        named = ((HEADER_PREFILL, prefill), (HEADER_DECODE, decode))
        self.reply.headers = (
            *self._headers,
            *((k.encode(), leg.instance.id.encode()) for k, leg in named if leg is not None),
        )

    def open(self, instance: Instance) -> Leg:
        """A leg to an instance that a decision has chosen."""
        leg = Leg(self.scheduler, self.flow, instance)
        self.legs.append(leg)
        return leg

    def leg_name(self, ticket: Ticket) -> str:
        """The id that engines see in the ticket's present attempt."""
        return f"{self.job.leg_name}-{ticket.attempts}"

    def attempt(
        self, name: str, number: int, due: float,
        prefill: RouteInstance, decode: RouteInstance | None = None, *, early_head: bool = False,
        token_ids: bool = False,
    ) -> LegAttempt:  # fmt: skip
        """A leg that must be done by `due`, as the engine's flow wants to know it."""
        left = max(1, int((due - time.perf_counter()) * 1000))
        return LegAttempt(
            self.job.endpoint, name, number, prefill, decode, self.job.trace,
            None if self.trial else left, early_head, token_ids,
        )  # fmt: skip

    async def post(
        self, leg: Leg, request: LegRequest, patience: float,
        on_interim: Callable[[Exchange], None] | None = None,
    ) -> Exchange:  # fmt: skip
        """Send a leg and wait for the reply's head, at most `patience` seconds.

        `on_interim` is called when an early head comes.

        Raises:
            UpstreamError: the instance cannot be reached, is lost, or sends no head in time.
        """
        headers = (*request.headers, authorization(self.tools.credential))
        if self.job.spans is not None:
            headers = (*headers, *self.job.spans.leg_headers(leg))
        return await self.tools.pool.post(
            leg.instance.route.endpoint, request.path, request.body, headers, patience, on_interim
        )

    def done(self, leg: Leg, exchange: Exchange) -> None:
        """Nothing more is read from this exchange."""
        self.tools.pool.done(leg.instance.route.endpoint, exchange)

    def release(self) -> None:
        """Free KV that no decode will pull; returns at once."""
        held, self.held = self.held, None
        if held is not None:
            held.leg.close()
            if held.outcome.kv is not None:
                self.tools.releaser.release(self.flow, held.leg.instance, held.release_id)

    def close(self) -> None:
        """End the request.

        What it still has at instances, in the room and in memory is given back.
        """
        if self.ticket is not None:
            self.scheduler.withdraw(self.ticket)
        for leg in self.legs:
            leg.close()
        self.release()
        if self.sent is not None:
            self.sent.close()

    @property
    def has_grace(self) -> bool:
        """Whether a fault gave this request its deadlines anew."""
        return self.grace_until > 0

    def grant_grace(self) -> None:
        """Give a request that lost time to a fault a later deadline; it keeps its turn."""
        now = time.perf_counter()
        if now > self.grace_until:
            self.grace_until = now + grace_seconds(self.scheduler.scenario.slo.ttft)
        if self.ticket is not None:
            self.ticket.deadline = max(self.ticket.deadline, self.grace_until)

    def grace_handoff(self, held_at: float) -> float:
        """The time until which a request with grace waits for a decode.

        `held_at`: when its prefill ended. Both in seconds of `time.perf_counter`.
        """
        slo = self.scheduler.scenario.slo
        return max(self.grace_until, held_at + slo.ttft) + slo.handoff

    @property
    def faults(self) -> int:
        """Faults of instances under this request, so far."""
        return self._faults

    def fault(self, message: str) -> None:
        """Count an instance's fault under this request.

        Raises:
            ApiError: 502, at `MAX_FAULTS` of them.
        """
        self._faults += 1
        if self._faults >= MAX_FAULTS:
            raise self.failed(message)

    def retry_in(self, wait: float) -> float:
        """Seconds after which the same request would be in time, if a prefill is `wait` away."""
        room = self.scheduler.scenario.slo.ttft - SAFETY * self.predicted
        return max(MIN_RETRY, wait - max(0.0, room))

    def failed(self, message: str) -> ApiError:
        """Instances failed the request, and it could not be saved."""
        self.outcome = "failed"
        return upstream(message)

    def relayed_error(self, exchange: Exchange, body: bytes) -> ApiError:
        """An engine's 4xx: the client's mistake, in the engine's words; not offered."""
        self.invalid = True
        return _RelayedError(exchange.status, body)


def _ends(body: JsonMap) -> JsonObject:
    """What of a body counts until the reply ends."""
    return {name: body[name] for name in ("stream", "stream_options") if name in body}


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
