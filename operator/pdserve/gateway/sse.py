"""What a relayed completion stream says about time and tokens, without slowing it down.

Whole SSE events are relayed as received; half an event waits for its rest, so that an error event
can always follow cleanly. Token times are the first and the second non-empty delta: a search in the
bytes finds text, and only an event without any is parsed. Afterwards an event is looked into only
when it carries usage. Token counts come from usage, never from counting events: the decode leg
always asks for the usage chunk, and it is taken out again when the client did not ask for it. No
I/O here.
"""

from __future__ import annotations

import re
from reprlib import repr as shown

import orjson

from pdserve.engines.flow import token_count
from pdserve.gateway.sent_stream import SentStream
from pdserve.terms.json import JsonObject

MAX_EVENT = 8 << 20
_USAGE = (b'"usage":{', b'"usage": {')
_DONE = b"data: [DONE]"
_CONTENT = re.compile(rb'"(?:text|content|reasoning_content)": ?"[^"]')
"""Something generated. Inside a string of JSON the quotes would have backslashes."""
_IDS = re.compile(rb"\nid: ([0-9,]+)(?=\n\n)")
"""Ids of an event's tokens. Inside of its JSON there is no line end."""
_ERROR = (b'data: {"error"', b'data: {"object":"error"')


class StreamError(ValueError):
    """The instance's stream is not the SSE of the OpenAI API."""


class StreamMeter:
    """Measures one stream; times are whatever clock `feed` is given."""

    def __init__(self, strip_usage: bool, sent: SentStream | None = None) -> None:
        """Make a meter.

        Args:
            strip_usage: take the usage out again, for clients that did not ask for it.
            sent: takes the ids of tokens, which are taken out of the events; None: there are none.
        """
        self.first_at: float | None = None
        self.second_at: float | None = None
        self.last_at: float | None = None
        self.usage: JsonObject | None = None
        self.tokens = 0
        """Output tokens that the instance reported."""
        self.events = 0
        """Events that came."""
        self.prompt_tokens = 0
        """Prompt tokens that it reported."""
        self.failed = False
        """The instance ended the stream with an error event."""
        self.done = False
        """The instance said that its stream is complete."""
        self._strip, self._sent = strip_usage, sent
        self._rest = b""

    def feed(self, data: bytes, now: float) -> bytes:
        """Bytes from the instance -> bytes for the client (whole events; may be empty).

        `now`: monotonic seconds, noted for tokens 1, 2 and the last.

        Raises:
            StreamError: the bytes are no stream of chunks, or one is too long.
        """
        if self._rest:
            data = self._rest + data
        elif self.second_at is not None and _is_plain(data):
            self.last_at = now
            data, ids = self._without_ids(data)
            return self._noted(data, ids)
        cut = data.rfind(b"\n\n") + 2
        if cut < 2:
            cut = data.rfind(b"\r\n\r\n") + 4
            if cut < 4:
                cut = 0
        self._rest = data[cut:]
        if len(self._rest) > MAX_EVENT:
            raise StreamError(f"an event of the stream is larger than {MAX_EVENT} bytes")
        if not cut:
            return b""
        ready, ids = self._without_ids(data[:cut])
        start = _usage_starts(ready)
        head, tail = (ready, b"") if start < 0 else (ready[:start], ready[start:])
        if head:
            self._time(head, now)
        if tail:
            ready = head + self._inspect(tail, now)
        if b"[DONE]" in ready[-32:] and ready.rstrip().endswith(_DONE):
            self.done = True
        if not self.failed and (_ERROR[0] in ready or _ERROR[1] in ready):
            self.failed = True
        return self._noted(ready, ids)

    def finish(self) -> None:
        """Note that the reply has ended.

        Raises:
            StreamError: the stream had not.
        """
        if self._rest or not (self.done or self.failed):
            raise StreamError("the stream was cut short")

    def _without_ids(self, events: bytes) -> tuple[bytes, list[bytes]]:
        """The events without the ids of their tokens, and these, each a list with commas between.

        Raises:
            StreamError: the client has a part of the answer, and this is not the rest.
        """
        if self._sent is None:
            return events, []
        parts = _IDS.split(events)
        if len(parts) > 1:
            return b"".join(parts[::2]), parts[1::2]
        if not self._sent.goes_on:
            # An older decode: its events would have another id, and count from 1.
            raise StreamError("the decode does not go on with the stream")
        return events, []

    def _noted(self, events: bytes, ids: list[bytes]) -> bytes:
        """Note the tokens of events once it is sure that the client gets these."""
        self.events += events.count(b"\n\n") or events.count(b"\r\n\r\n")
        if self._sent is not None:
            self._sent.add(ids)
        return events

    def _time(self, events: bytes, now: float) -> None:
        """Note the times of tokens in whole events without usage."""
        at, separator = 0, _separator(events)
        while self.second_at is None and at < len(events):
            end = events.find(separator, at) + len(separator)
            event = events[at:end]
            if _CONTENT.search(event) and b'"choices"' in event:
                self._token(now)
            else:
                self._keep(event.rstrip(), now)
            at = end
        if at < len(events) and events[at:] != b"data: [DONE]\n\n":
            self.last_at = now

    def _token(self, now: float) -> None:
        self.last_at = now
        if self.first_at is None:
            self.first_at = now
        elif self.second_at is None:
            self.second_at = now

    def _inspect(self, events: bytes, now: float) -> bytes:
        separator = _separator(events)
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
                self.prompt_tokens = token_count(usage.get("prompt_tokens"))
            except ValueError as wrong:
                raise StreamError(str(wrong)) from wrong
            if not choices:
                return not self._strip
        if choices and has_content(choices):
            self._token(now)
        return True


def _is_plain(data: bytes) -> bool:
    """Whether it is whole events, none of which can have usage, an error or the end in it."""
    return (
        data.endswith(b"\n\n")
        and b'"usage"' not in data
        and b'"error"' not in data
        and b"[DONE]" not in data
    )


def _separator(events: bytes) -> bytes:
    return b"\r\n\r\n" if b"\r\n\r\n" in events else b"\n\n"


def _usage_starts(events: bytes) -> int:
    """Where the first event with usage begins; -1: none has."""
    found = [at for mark in _USAGE if (at := events.find(mark)) >= 0]
    if not found:
        return -1
    before = events.rfind(b"\n\n", 0, min(found))
    if before < 0:
        before = events.rfind(b"\n\r\n", 0, min(found)) + 1
        return before + 2 if before > 0 else 0
    return before + 2


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
