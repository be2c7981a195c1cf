"""What a relayed completion stream says about time and tokens, without slowing it down.

Whole SSE events are relayed as received; half an event waits for its rest, so that an error event
can always follow cleanly. Until token 2 the events are parsed (token times are the first and the
second non-empty delta); afterwards an event is looked into only when it carries usage. Token
counts come from usage, never from counting events: the decode leg always asks for the usage chunk,
and it is taken out again when the client did not ask for it. No I/O here.
"""

from __future__ import annotations

from typing import Any

import orjson

MAX_EVENT = 8 << 20
_USAGE = (b'"usage":{', b'"usage": {')
_ERROR = (b'data: {"error"', b'data: {"object":"error"')


class StreamError(ValueError):
    """The instance's stream is not the SSE of the OpenAI API."""


class StreamMeter:
    """Measures one stream; times are whatever clock `feed` is given."""

    def __init__(self, strip_usage: bool) -> None:
        self.first_at: float | None = None
        self.second_at: float | None = None
        self.last_at: float | None = None
        self.usage: dict[str, Any] | None = None
        self.failed = False
        """The instance ended the stream with an error event."""
        self._strip = strip_usage
        self._rest = b""

    def feed(self, data: bytes, now: float) -> bytes:
        """Bytes from the instance -> bytes for the client (whole events; may be empty)."""
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
        if not self.failed and any(mark in ready for mark in _ERROR):
            self.failed = True
        return ready

    @property
    def tokens(self) -> int:
        """Output tokens the instance reported; 0 when it reported none."""
        return int((self.usage or {}).get("completion_tokens") or 0)

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
            self.usage = usage
            if not choices:
                return not self._strip
        if choices and has_content(choices[0]):
            self.last_at = now
            if self.first_at is None:
                self.first_at = now
            elif self.second_at is None:
                self.second_at = now
        return True


def has_content(choice: dict[str, Any]) -> bool:
    """True when a streamed choice carries something generated."""
    delta = choice.get("delta")
    if delta is None:
        return bool(choice.get("text"))
    return bool(delta.get("content") or delta.get("tool_calls") or delta.get("reasoning_content"))
