"""A request that has ended as OpenTelemetry spans.

    chat MODEL                what the client asked; refusals are events of it
      wait for prefill        in the waiting room, before each prefill leg
      prefill                 one for each leg, also for refused ones
      wait for decode
      decode

Attributes are those of the conventions for GenAI, and `pdserve.*`. Neighbours: `access_log` notes
the request, `tracing` exports.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from pdserve.forwarding.request.leg import Leg
from pdserve.forwarding.request.request import Request
from pdserve.gateway.access_log import Record
from pdserve.gateway.request_trace import RequestTrace
from pdserve.wire.calls import PATH_CHAT

MAX_LEGS = 64
"""Of one request that become spans; the request's span has the number of all."""
SHORTEST_WAIT = 0.0005
"""Seconds; a shorter wait before a leg is no span of its own."""
Value = str | int | float | bool


class _Clock:
    """From monotonic seconds to nanoseconds since the epoch, as both clocks are now."""

    def __init__(self, now: float, wall: int) -> None:
        self._now, self._wall = now, wall

    def at(self, instant: float) -> int:
        return self._wall - int((self._now - instant) * 1e9)


def attributes(values: Mapping[str, Value]) -> list[KeyValue]:
    """Attributes of OTLP."""
    return [KeyValue(key=name, value=_any(value)) for name, value in values.items()]


def _any(value: Value) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return AnyValue(int_value=value)
    if isinstance(value, int | float):
        return AnyValue(double_value=float(value))
    return AnyValue(string_value=value)


def spans_of(
    record: Record, trace: RequestTrace, status: int, now: float, wall: int
) -> list[Span]:  # fmt: skip
    """The spans of a request.

    Args:
        record: what is known of it; it has ended.
        trace: its own.
        status: HTTP status of the answer; 0: its client left before there was one.
        now: monotonic seconds.
        wall: the same instant, nanoseconds since the epoch.
    """
    clock = _Clock(now, wall)
    request = _request_span(record, trace, status, clock, now)
    spans = [request]
    for served in record.requests:
        spans += _legs(served, trace, request, clock, now)
    return spans


def _request_span(
    record: Record, trace: RequestTrace, status: int, clock: _Clock, now: float
) -> Span:  # fmt: skip
    operation = "chat" if record.path == PATH_CHAT else "text_completion"
    model = trace.parameters.get("gen_ai.request.model", "")
    requests, parent = record.requests, trace.parent
    values: dict[str, Value] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "pdserve",
        "http.request.method": "POST",
        "url.path": record.path,
        "pdserve.request.id": record.request_id,
        **trace.parameters,
    }
    if status:
        values["http.response.status_code"] = status
    if requests:
        values |= _served(requests)
    span = Span(
        trace_id=trace.context.trace_id, span_id=trace.context.span_id,
        parent_span_id=b"" if parent is None else parent.span_id,
        trace_state=trace.context.state.decode("ascii"),
        name=f"{operation} {model}".strip(), kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=clock.at(record.arrived), end_time_unix_nano=clock.at(now),
    )  # fmt: skip
    code = record.refusal_code
    if code:
        values["error.type"] = code
        span.events.append(_event("refused", clock.at(now), {"pdserve.code": code}))
    if status >= 500 or not status or any(c.outcome == "failed" for c in requests):
        span.status.code = Status.STATUS_CODE_ERROR
        span.status.message = code or ("failed" if status else "the client left")
    span.attributes.extend(attributes(values))
    return span


def _served(requests: list[Request]) -> dict[str, Value]:
    outcomes = [c.outcome or ("invalid" if c.invalid else "cancelled") for c in requests]
    found: dict[str, Value] = {
        "pdserve.scenario": requests[0].scheduler.scenario.name,
        "pdserve.outcome": next((o for o in outcomes if o != "completed"), "completed"),
        "pdserve.legs": sum(len(c.legs) for c in requests),
        "gen_ai.usage.input_tokens": sum(c.timeline.prompt_tokens for c in requests),
        "gen_ai.usage.output_tokens": sum(c.timeline.output_tokens for c in requests),
    }
    if cached := sum(c.timeline.cached_tokens for c in requests):
        found["gen_ai.usage.cache_read.input_tokens"] = cached
    times = [t for c in requests if (t := c.timeline.ttft) is not None]
    if times:
        found["gen_ai.latency.time_to_first_token"] = times[0]
    return found


def _legs(
    served: Request, trace: RequestTrace, request: Span, clock: _Clock, now: float
) -> Iterable[Span]:  # fmt: skip
    """Spans of the legs of one choice and of the waits before them; refusals to the request."""
    free = served.timeline.arrived
    own = [leg for leg in served.legs if leg in trace.legs]
    for leg in own[: MAX_LEGS - len(request.events)]:
        role, result, end = leg.instance.route.role, leg.result, _end(leg, served, now)
        if leg.sent_at - free >= SHORTEST_WAIT:
            yield _child(request, f"wait for {role}", os.urandom(8), clock, free, leg.sent_at)
        free = max(free, end)
        span = _child(request, role, trace.legs[leg], clock, leg.sent_at, end)
        span.kind = Span.SPAN_KIND_CLIENT
        where = urlsplit(leg.instance.route.endpoint)
        instance: dict[str, Value] = {"pdserve.instance": leg.instance.id}
        span.attributes.extend(attributes({
            **instance, "pdserve.result": result, "server.address": where.hostname or "",
            "server.port": where.port or 80,
        }))  # fmt: skip
        if result.startswith("failed"):
            span.status.code, span.status.message = Status.STATUS_CODE_ERROR, result
        if result.startswith("refused"):
            values = {**instance, "pdserve.leg": role, "pdserve.reason": result[9:]}
            request.events.append(_event("leg refused", clock.at(end), values))
        yield span
    if not served.legs and served.outcome == "expired":
        yield _child(request, "wait for prefill", os.urandom(8), clock, free, now)


def _end(leg: Leg, served: Request, now: float) -> float:
    """When a leg's reply was complete."""
    end = leg.ended_at or now
    if leg.result == "accepted" and leg.instance.route.role == "decode":
        return max(end, served.timeline.last or end)
    return end


def _child(
    request: Span, name: str, span_id: bytes, clock: _Clock, start: float, end: float
) -> Span:  # fmt: skip
    return Span(
        trace_id=request.trace_id, span_id=span_id, parent_span_id=request.span_id,
        trace_state=request.trace_state, name=name, kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=clock.at(start), end_time_unix_nano=clock.at(max(start, end)),
    )  # fmt: skip


def _event(name: str, at: int, values: Mapping[str, Value]) -> Span.Event:
    return Span.Event(name=name, time_unix_nano=at, attributes=attributes(values))
