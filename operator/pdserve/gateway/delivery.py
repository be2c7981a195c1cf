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
from pdserve.gateway.sent_stream import SentStream
from pdserve.gateway.sse import StreamError, StreamMeter
from pdserve.http1.client import MAX_BODY, Exchange, UpstreamError
from pdserve.http1.errors import Headers
from pdserve.terms.failures import Failure
from pdserve.wire.bounds import parse_json


class ClientReply(Protocol):
    """What one request answers to: the client's `http1.reply.Reply`, or its part of one."""

    headers: Headers
    started: bool

    def start(
        self, status: int, content_type: str, first: bytes, *, ends: bool = False
    ) -> None:  # fmt: skip
        """Begin a stream; `ends`: complete with this piece."""

    def write(self, data: bytes) -> None:
        """Another piece of a started stream."""

    def end(self, data: bytes = b"") -> None:
        """The stream is complete, with this last piece."""

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
    sent: SentStream | None,
) -> bool:
    """Relay an event stream as received, and measure it.

    Returns False when the instance itself ended it with an error event. `silence`: seconds
    without a byte after which the instance is taken for dead. `begun` is called with the first
    byte of a reply that has none. `sent` notes what the client has, where it can be continued.

    Raises:
        DeliveryError: the stream broke off, is empty, or is not one of the OpenAI API.
    """
    meter = StreamMeter(strip_usage, sent)
    stream = _Stream(exchange, reply, meter, begun, sent)
    reply.on_flow(exchange.pause, exchange.resume)
    try:
        await exchange.relay(stream.sink, silence)
        if reply.started or stream.last:
            meter.finish()
    except StreamError as error:
        if stream.last:
            stream.pass_on(stream.last)
        raise DeliveryError("status", str(error)) from error
    except UpstreamError as lost:
        raise DeliveryError(lost.kind, str(stream.broken or lost)) from lost
    finally:
        if timeline.first is None:
            timeline.first, timeline.second = meter.first_at, meter.second_at
        elif timeline.second is None:
            timeline.second = meter.first_at
        timeline.last, timeline.output_tokens = meter.last_at or timeline.last, meter.tokens
        timeline.prompt_tokens = timeline.prompt_tokens or meter.prompt_tokens
        timeline.events += meter.events
    if not (reply.started or stream.last):
        raise DeliveryError("status", "the stream was empty")
    stream.pass_on(stream.last, ends=True)
    return not meter.failed


class _Stream:
    """An instance's stream on its way to the client."""

    __slots__ = ("_begun", "_exchange", "_meter", "_reply", "_sent", "broken", "last")

    def __init__(
        self, exchange: Exchange, reply: ClientReply, meter: StreamMeter,
        begun: Callable[[], None], sent: SentStream | None,
    ) -> None:  # fmt: skip
        self._exchange, self._reply, self._meter, self._begun = exchange, reply, meter, begun
        self._sent = sent
        self.broken: StreamError | None = None
        """Why the stream is none of the OpenAI API."""
        self.last = b""
        """What came together with the end of the reply: one write for both."""

    def sink(self, data: bytes) -> None:
        """Take bytes as they come."""
        try:
            ready = self._meter.feed(data, time.perf_counter())
        except StreamError as error:
            self.broken = error
            self._exchange.abort()
            return
        if self._exchange.complete:
            self.last += ready
        elif ready:
            self.pass_on(ready)

    def pass_on(self, data: bytes, *, ends: bool = False) -> None:
        """Write whole events to the client; `ends`: they are the last."""
        if self._sent is not None and data:
            self._sent.passed_on(data)
        if not self._reply.started:
            self._begun()
            headers = self._exchange.headers
            content_type = headers.get(b"content-type", b"text/event-stream").decode("latin-1")
            self._reply.start(200, content_type, data, ends=ends)
        elif ends:
            self._reply.end(data)
        else:
            self._reply.write(data)


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
        usage = value.get("usage") or {}
        timeline.output_tokens = token_count(usage.get("completion_tokens"))
        timeline.prompt_tokens = timeline.prompt_tokens or token_count(usage.get("prompt_tokens"))
    except UpstreamError as error:
        raise DeliveryError(error.kind, str(error)) from error
    except (AttributeError, LookupError, TypeError, ValueError) as wrong:
        raise DeliveryError("status", f"not a completion: {wrong!r:.200}") from wrong
    timeline.last = time.perf_counter()
    reply.send(200, body, "application/json")
