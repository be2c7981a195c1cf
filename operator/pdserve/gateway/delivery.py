"""Delivering a decode's reply to the client: as a stream, or whole.

The last phase of `pipeline`, apart because it is about bytes and no longer about
choosing. Raises `DeliveryError` when the instance is lost; whether the client already has bytes
(`reply.started`) decides what can still be done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from pdserve.engines.flow import token_count
from pdserve.gateway.measure import Timeline
from pdserve.gateway.sse import StreamError, StreamMeter
from pdserve.http1.client import MAX_BODY, Exchange, UpstreamError
from pdserve.http1.errors import Headers
from pdserve.terms.failures import Failure
from pdserve.wire.bounds import parse_json


class ClientReply(Protocol):
    """What one request answers to: the client's `http1.reply.Reply`, or its part of one."""

    headers: Headers
    started: bool

    def start(self, status: int, content_type: str, first: bytes) -> None:
        """Begin a stream."""

    def write(self, data: bytes) -> None:
        """Another piece of a started stream."""

    def end(self) -> None:
        """The stream is complete."""

    def send(self, status: int, body: bytes, content_type: str) -> None:
        """A whole reply."""

    def body_done(self) -> None:
        """Nothing of the request's body is kept any more."""

    def on_flow(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """What to call when the client reads too slowly, and when it has caught up."""


class DeliveryError(Exception):
    """The reply broke off, or is not what the OpenAI API says."""

    def __init__(self, kind: Failure, message: str) -> None:
        super().__init__(message)
        self.kind = kind


async def relay(
    exchange: Exchange,
    reply: ClientReply,
    timeline: Timeline,
    *,
    strip_usage: bool,
    silence: float,
    begun: Callable[[], None],
) -> bool:
    """Relay an event stream as received, and measure it.

    Returns False when the instance itself ended it with an error event. `silence`: seconds
    without a byte after which the instance is taken for dead. `begun` is called with the first
    byte.

    Raises:
        DeliveryError: the stream broke off, is empty, or is not one of the OpenAI API.
    """
    meter = StreamMeter(strip_usage)
    content_type = exchange.headers.get(b"content-type", b"text/event-stream").decode("latin-1")
    broken: StreamError | None = None

    def sink(data: bytes) -> None:
        nonlocal broken
        try:
            ready = meter.feed(data, time.perf_counter())
        except StreamError as error:
            broken = error
            exchange.abort()
            return
        if not ready:
            return
        if reply.started:
            reply.write(ready)
        else:
            reply.start(200, content_type, ready)
            begun()

    reply.on_flow(exchange.pause, exchange.resume)
    try:
        await exchange.relay(sink, silence)
        if reply.started:
            meter.finish()
    except StreamError as error:
        raise DeliveryError("status", str(error)) from error
    except UpstreamError as error:
        raise DeliveryError(error.kind, str(broken or error)) from error
    finally:
        timeline.first, timeline.second = meter.first_at, meter.second_at
        timeline.last, timeline.output_tokens = meter.last_at, meter.tokens
    if not reply.started:
        raise DeliveryError("status", "the stream was empty")
    reply.end()
    return not meter.failed


async def collect(
    exchange: Exchange, reply: ClientReply, timeline: Timeline, silence: float
) -> None:
    """Send a reply that is not streamed, once all of it is there.

    `silence`: seconds without a byte after which the instance is taken for dead.

    Raises:
        DeliveryError: the instance was lost, or the reply is no completion.
    """
    try:
        body = await exchange.read(silence)
        value = parse_json(body, max_bytes=MAX_BODY)
        if not isinstance(value["choices"][0], dict):
            raise TypeError("a choice is no object")
        timeline.output_tokens = token_count((value.get("usage") or {}).get("completion_tokens"))
    except UpstreamError as error:
        raise DeliveryError(error.kind, str(error)) from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise DeliveryError("status", f"not a completion: {error!r:.200}") from error
    timeline.last = time.perf_counter()
    reply.send(200, body, "application/json")
