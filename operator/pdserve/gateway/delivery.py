"""Delivering a decode's reply to the client: as a stream, or whole.

Apart from `request_driver` because it is about bytes. What is the last of a reply is kept until the
request has been counted, and leaves in one write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pdserve.engines.flow import token_count
from pdserve.forwarding.request.measure import Timeline
from pdserve.gateway.sent_stream import SentStream
from pdserve.gateway.sse import StreamError, StreamMeter
from pdserve.http1.client import MAX_BODY
from pdserve.http1.errors import Headers
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


class StreamDelivery:
    """An instance's stream on its way to the client, relayed as received and measured."""

    def __init__(
        self, reply: ClientReply, content_type: str, *, strip_usage: bool,
        begun: Callable[[], None], sent: SentStream | None,
    ) -> None:  # fmt: skip
        """Nothing has come.

        Args:
            reply: the client's.
            content_type: of the instance's reply.
            strip_usage: take the usage out again, for clients that did not ask for it.
            begun: called with the first byte of a reply that has none.
            sent: notes what the client has, where it can be continued.
        """
        self._reply, self._content_type = reply, content_type
        self._meter = StreamMeter(strip_usage, sent)
        self._begun, self._sent = begun, sent
        self._last = b""
        """What came together with the end of the reply: one write for both."""

    def take(self, data: bytes, now: float, *, last: bool) -> None:
        """Take bytes as they come at `now` (monotonic seconds); `last`: nothing comes after them.

        Raises:
            StreamError: they are no stream of the OpenAI API.
        """
        ready = self._meter.feed(data, now)
        if last:
            self._last += ready
        elif ready:
            self._pass_on(ready, ends=False)

    def finish(self) -> None:
        """All has come.

        Raises:
            StreamError: the stream is empty, or was cut short.
        """
        if not (self._reply.started or self._last):
            raise StreamError("the stream was empty")
        try:
            self._meter.finish()
        except StreamError:
            if self._last:
                self._pass_on(self._last, ends=False)
            raise

    def end(self) -> None:
        """Write the last piece; the client's reply is complete."""
        self._pass_on(self._last, ends=True)

    @property
    def whole(self) -> bool:
        """The instance did not end it with an error event."""
        return not self._meter.failed

    def note(self, timeline: Timeline) -> None:
        """Note times and tokens, whatever became of it."""
        meter = self._meter
        if timeline.first is None:
            timeline.first, timeline.second = meter.first_at, meter.second_at
        elif timeline.second is None:
            timeline.second = meter.first_at
        timeline.last, timeline.output_tokens = meter.last_at or timeline.last, meter.tokens
        timeline.prompt_tokens = timeline.prompt_tokens or meter.prompt_tokens
        timeline.events += meter.events

    def _pass_on(self, data: bytes, *, ends: bool) -> None:
        """Write whole events to the client; `ends`: they are the last."""
        if self._sent is not None and data:
            self._sent.passed_on(data)
        if not self._reply.started:
            self._begun()
            self._reply.start(200, self._content_type, data, ends=ends)
        elif ends:
            self._reply.end(data)
        else:
            self._reply.write(data)


def check_completion(body: bytes, timeline: Timeline) -> str:
    """Why a reply that is not streamed is no completion; empty: it is one, and its tokens noted."""
    try:
        value = parse_json(body, max_bytes=MAX_BODY)
        if not isinstance(value["choices"][0], dict):
            raise TypeError("a choice is no object")
        usage = value.get("usage") or {}
        timeline.output_tokens = token_count(usage.get("completion_tokens"))
        timeline.prompt_tokens = timeline.prompt_tokens or token_count(usage.get("prompt_tokens"))
    except (AttributeError, LookupError, TypeError, ValueError) as wrong:
        return f"not a completion: {wrong!r:.200}"
    return ""
