"""What a relayed completion stream says about time and tokens, without slowing it down.

Whole SSE events are relayed as received; half an event waits for its rest, so that an error event
can always follow cleanly. Until token 2 the events are parsed (token times are the first and the
second non-empty delta); afterwards an event is looked into only when it carries usage. Token
counts come from usage, never from counting events: the decode leg always asks for the usage chunk,
and it is taken out again when the client did not ask for it. No I/O here.
"""

from __future__ import annotations

from reprlib import repr as shown

import orjson

from pdserve.engines.flow import token_count
from pdserve.terms.json import JsonObject

MAX_EVENT = 8 << 20
_USAGE = (b'"usage":{', b'"usage": {')
_DONE = b"data: [DONE]"
_ERROR = (b'data: {"error"', b'data: {"object":"error"')


class StreamError(ValueError):
    """The instance's stream is not the SSE of the OpenAI API."""


class StreamMeter:
    """Measures one stream; times are whatever clock `feed` is given."""

    def __init__(self, strip_usage: bool) -> None:
        self.first_at: float | None = None
        self.second_at: float | None = None
        self.last_at: float | None = None
        self.usage: JsonObject | None = None
        self.tokens = 0
        """Output tokens that the instance reported."""
        self.failed = False
        """The instance ended the stream with an error event."""
        self.done = False
        """The instance said that its stream is complete."""
        self._strip = strip_usage
        self._rest = b""

    def feed(self, data: bytes, now: float) -> bytes:
        """Bytes from the instance -> bytes for the client (whole events; may be empty).

        `now`: monotonic seconds, noted for tokens 1, 2 and the last.

        Raises:
            StreamError: the bytes are no stream of chunks, or one is too long.
        """
        if self._rest:
            data = self._rest + data
        cut = data.rfind(b"\n\n") + 2
        if cut < 2:
            cut = data.rfind(b"\r\n\r\n") + 4
            if cut < 4:
                cut = 0
        self._rest = data[cut:]
        if len(self._rest) > MAX_EVENT:
            raise StreamError(f"an event of the stream is larger than {MAX_EVENT} bytes")
        ready = data[:cut]
        if not ready:
            return b""
        if self.second_at is None or any(mark in ready for mark in _USAGE):
            ready = self._inspect(ready, now)
        elif ready != b"data: [DONE]\n\n":
            self.last_at = now
        if ready.rstrip().endswith(_DONE):
            self.done = True
        if not self.failed and any(mark in ready for mark in _ERROR):
            self.failed = True
        return ready

    def finish(self) -> None:
        """Note that the reply has ended.

        Raises:
            StreamError: the stream had not.
        """
        if self._rest or not (self.done or self.failed):
            raise StreamError("the stream was cut short")

    def _inspect(self, events: bytes, now: float) -> bytes:
        separator = b"\r\n\r\n" if b"\r\n\r\n" in events else b"\n\n"
        kept = (e for e in events.split(separator) if e and self._keep(e, now))
        return b"".join(event + separator for event in kept)

    def _keep(self, event: bytes, now: float) -> bool:
        """Learn from one event; False when it is only there because we asked for usage."""
        if not event.startswith(b"data: {"):
            return True
        try:
            value = orjson.loads(event[6:])
        except orjson.JSONDecodeError as error:
            raise StreamError(f"event is not JSON: {error}") from error
        choices = value.get("choices")
        usage = value.get("usage")
        if isinstance(usage, dict):
            try:
                self.usage, self.tokens = usage, token_count(usage.get("completion_tokens"))
            except ValueError as error:
                raise StreamError(str(error)) from error
            if not choices:
                return not self._strip
        if choices and has_content(choices):
            self.last_at = now
            if self.first_at is None:
                self.first_at = now
            elif self.second_at is None:
                self.second_at = now
        return True


def has_content(choices: object) -> bool:
    """True when the first of streamed choices carries something generated.

    Raises:
        StreamError: they are no choices of a completion.
    """
    choice = choices[0] if isinstance(choices, list) else None
    if not isinstance(choice, dict):
        raise StreamError(f"choices are {shown(choices)}")
    delta = choice.get("delta")
    if delta is None:
        return bool(choice.get("text"))
    if not isinstance(delta, dict):
        raise StreamError(f"a delta is {shown(delta)}")
    return bool(delta.get("content") or delta.get("tool_calls") or delta.get("reasoning_content"))
