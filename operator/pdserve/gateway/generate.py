"""From a generating request's bytes to its choices, and from their end to its log line.

A request of which nothing has to be awaited before its first leg (small body, as it is, no limits,
one choice) is begun at once and goes on by callbacks, without a task. Others get a coroutine that
waits. Neighbours: `app` has the paths, `request_driver` serves a choice, `fan_out` several.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pdserve.engines.flow import Endpoint
from pdserve.forwarding.deadline import PromptSize, prompt_size
from pdserve.forwarding.fair_turns import Turn
from pdserve.forwarding.limit_book import LimitSubject
from pdserve.gateway.access_log import AccessLog, Record
from pdserve.gateway.auth import API_KEY, AUTHORIZATION, KeyRing, tenant_of
from pdserve.gateway.choices import Choice, JoinedReply, choices_of, count_choices, size_of_all
from pdserve.gateway.dense import SMALL, Body, read_body
from pdserve.gateway.drivers import DriverMaker
from pdserve.gateway.errors import overloaded
from pdserve.gateway.fan_out import serve_choices
from pdserve.gateway.inflate import plain_body
from pdserve.gateway.intake import (
    check_body_bytes,
    check_prompt_bytes,
    parse_body,
    parsed_size,
)
from pdserve.gateway.job import Tools
from pdserve.gateway.limits import GatewayLimits
from pdserve.gateway.prefixes import PromptHasher, salt_with_key
from pdserve.gateway.request_ids import RequestIds
from pdserve.gateway.service import Service
from pdserve.http1.errors import ApiError, Headers
from pdserve.http1.limits import BodyMemory
from pdserve.http1.receive import HeaderTexts, HttpRequest
from pdserve.http1.reply import Reply
from pdserve.terms.json import JsonObject
from pdserve.wire.calls import HEADER_SCENARIO

if TYPE_CHECKING:
    from pdserve.gateway.tracing import Tracer

logger = logging.getLogger(__name__)

SCENARIO = HEADER_SCENARIO.encode()
SHEDDABLE = "flex"
"""`service_tier` of requests that come after others and are shed first."""
_TRACE = (b"traceparent", b"tracestate")


@dataclass(frozen=True, slots=True)
class Parts:
    """What generating requests of one gateway need."""

    service: Service
    tools: Tools
    rates: GatewayLimits
    keys: KeyRing | None
    ids: RequestIds
    prefixes: PromptHasher
    memory: BodyMemory
    most: int
    """Bytes of a body."""
    log: AccessLog | None


@dataclass(frozen=True, slots=True)
class _Ready:
    """A request that was read and checked, before its limits."""

    makers: DriverMaker
    choices: list[Choice]
    body: JsonObject
    """Without what its choices took."""
    subjects: tuple[LimitSubject, ...]
    prompts: list[float]
    """Expected tokens of the prompt of each choice, where limits count them."""
    bytes: int
    room: int


class GenerateHandler:
    """Answers the generating requests of one gateway."""

    def __init__(self, parts: Parts, tracer: Tracer | None) -> None:
        self._p, self._tracer = parts, tracer

    def handle(
        self, endpoint: Endpoint, request: HttpRequest, reply: Reply, request_id: str
    ) -> Awaitable[None] | None:
        """Begin one request; what is returned has to be awaited."""
        record = self.record(request, request_id)
        try:
            if request.headers.get(b"content-encoding") is None and len(request.body) <= SMALL:
                size, room = self._count(endpoint, request, reply)
                read = Body(parse_body(endpoint, request.body))
                ready = self._check(endpoint, request, reply, record, read, size, room)
                if len(ready.choices) == 1 and not ready.subjects:
                    self._start(ready, request, reply, record)
                    return None
                work = self._admitted(ready, request, reply, record)
            else:
                work = self._read(endpoint, request, reply, record)
        except Exception as error:
            self.end(record, reply, error)
            return None
        return self._wait(work, reply, record)

    def record(self, request: HttpRequest, request_id: str) -> Record:
        """What is noted of a request, and of its trace; `end` follows."""
        record = Record(request_id, request.path, request.head_at)
        if self._tracer is not None:
            record.trace = self._tracer.begin(request.headers)
        return record

    def end(self, record: Record, reply: Reply, error: Exception | None) -> None:
        """Send what the client still has to get, and note what became of its request."""
        parts = self._p
        if error is not None:
            if not isinstance(error, ApiError):
                logger.error("a request failed inside the gateway", exc_info=error)
                error = ApiError(500, "internal error", kind="server_error", code="internal")
            record.failed(error)
            reply.error(error)
        if record.admission is not None:
            record.admission.end([r.timeline for r in record.requests])
        if self._tracer is not None and record.trace is not None:
            self._tracer.end(record, record.trace, reply.status)
        if parts.log is not None:
            parts.log.write(record.line(reply.status, time.perf_counter()))

    # --- at once ---

    def _start(self, ready: _Ready, request: HttpRequest, reply: Reply, record: Record) -> None:
        driver = ready.makers.of_choice(ready.choices[0], reply, request.head_at)
        driver.on_end = partial(self.end, record, reply)
        reply.on_leave = driver.client_left
        driver.start()

    def _count(self, endpoint: Endpoint, request: HttpRequest, reply: Reply) -> tuple[int, int]:
        """Count the memory that a body will take: it, and what there is beside it.

        Raises:
            ApiError: there is no room.
        """
        parts = self._p
        check_body_bytes(endpoint, len(request.body), parts.service.largest_body)
        size = parsed_size(request.body)
        room = parts.memory.limit - len(request.body)
        if size > room:
            raise ApiError(413, "the body holds too many values", code="too_large")
        if not reply.grows(size):
            raise overloaded("too_much_at_once", "the bodies in progress fill the memory", 2, 2, 0)
        return size, room

    def _check(
        self, endpoint: Endpoint, request: HttpRequest, reply: Reply, record: Record, read: Body,
        size: int, room: int,
    ) -> _Ready:  # fmt: skip
        """Find the scenario, and check the prompts; raises ApiError."""
        parts, body, ids = self._p, read.fields, read.ids
        request.body = b""  # a stream that has begun needs it no more
        headers = HeaderTexts(request.headers)
        named = body["model"]
        scheduler, flow, model = parts.service.scheduler(named, headers)
        reply.headers = (*reply.headers, (SCENARIO, scheduler.scenario.name.encode()))
        # Clients may name a scenario by its own model name; engines serve one model.
        body["model"] = model
        if parts.keys is not None:
            salt_with_key(body, request.headers)
        turn = self._turn_of(body, request)
        trace = _passed_on(request, record, body)
        leg_name = parts.ids.leg_name(record.request_id)
        choices = choices_of(body)
        sizes: list[PromptSize] = []
        for choice in choices[:: body.get("n") or 1]:
            prompt = PromptSize(tokens=ids) if ids else prompt_size(choice.body)
            check_prompt_bytes(endpoint, prompt, scheduler.scenario.max_prompt_bytes)
            if scheduler.wants_blocks:
                prompt.blocks = parts.prefixes.blocks(choice.body)
            sizes.append(prompt)
        subjects = parts.rates.subjects(scheduler.scenario, turn.client)
        prompts: list[float] = []
        if subjects:
            prompts = [scheduler.estimate.tokens(sizes[choice.prompt]) for choice in choices]
        makers = DriverMaker(
            scheduler, flow, parts.tools, endpoint, leg_name, len(choices) > 1, trace, sizes,
            named, size // len(sizes), turn, record,
        )  # fmt: skip
        return _Ready(makers, choices, body, subjects, prompts, size, room)

    def _turn_of(self, body: JsonObject, request: HttpRequest) -> Turn:
        """Whose turn a request waits for: clients differ by their API keys."""
        client = b""
        if self._p.keys is not None:
            client = tenant_of(request.headers.get(AUTHORIZATION), request.headers.get(API_KEY))
        return Turn(client, body.get("service_tier") == SHEDDABLE)

    # --- waiting ---

    async def _wait(
        self, work: Awaitable[Callable[[], Awaitable[None]]], reply: Reply, record: Record
    ) -> None:
        failed: Exception | None = None
        try:
            # Nothing here keeps the body: a stream that has begun needs it no more.
            serve = await work
            await serve()
        except asyncio.CancelledError:
            self.end(record, reply, None)
            raise
        except Exception as error:
            failed = error
        self.end(record, reply, failed)

    async def _read(
        self, endpoint: Endpoint, request: HttpRequest, reply: Reply, record: Record
    ) -> Callable[[], Awaitable[None]]:
        """What serves a request whose body is large or encoded; raises ApiError."""
        encoding = request.headers.get(b"content-encoding")
        if encoding is not None:
            request.body = await plain_body(request.body, encoding, self._p.most, reply.grows)
        size, room = self._count(endpoint, request, reply)
        read = await read_body(endpoint, request.body)
        ready = self._check(endpoint, request, reply, record, read, size, room)
        return await self._admitted(ready, request, reply, record)

    async def _admitted(
        self, ready: _Ready, request: HttpRequest, reply: Reply, record: Record
    ) -> Callable[[], Awaitable[None]]:
        """What serves a request, once its limits have admitted it; raises ApiError."""
        makers, choices, body = ready.makers, ready.choices, ready.body
        scheduler = makers.scheduler
        if ready.subjects:
            limited = await self._p.rates.admit(
                ready.subjects, scheduler.scenario, ready.prompts, body
            )
            record.admission, reply.headers = limited, (*reply.headers, *limited.headers)
        if len(choices) == 1:
            return makers.of_choice(choices[0], reply, request.head_at).served
        count_choices(reply, len(choices), size_of_all(body, ready.bytes), ready.bytes, ready.room)
        joined = JoinedReply(reply, choices, body)
        return partial(serve_choices, joined, scheduler.view, makers.of_part, request.head_at)


def _passed_on(request: HttpRequest, record: Record, body: JsonObject) -> Headers:
    """What of the client's trace goes to engines as it came: where nothing is traced here."""
    if record.trace is not None:
        record.trace.describe(body)
        return ()
    return tuple((name, request.headers[name]) for name in _TRACE if name in request.headers)
