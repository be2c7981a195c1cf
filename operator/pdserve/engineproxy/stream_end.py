"""What the proxy reads of a reply: counts of tokens, and whether a stream begins with an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import orjson

from pdserve.engines.flow import token_count
from pdserve.terms.json import JsonMap

TAIL: Final = 16 << 10
"""Bytes of a stream's end in which its usage is looked for."""
HEAD: Final = 64 << 10
"""Bytes in which the first event must end."""


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """`usage` of a reply: tokens of the prompt, those found in a cache, those made."""

    prompt: int = 0
    cached: int = 0
    made: int = 0

    @staticmethod
    def of(reply: object) -> TokenCounts:
        """The counts in a reply or chunk; zeros where it has none that make sense."""
        usage = reply.get("usage") if isinstance(reply, dict) else None
        if not isinstance(usage, dict):
            return TokenCounts()
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        try:
            return TokenCounts(
                token_count(usage.get("prompt_tokens")),
                token_count(cached),
                token_count(usage.get("completion_tokens")),
            )
        except ValueError:
            return TokenCounts()


class StreamEnds:
    """Beginning and end of an SSE stream that is passed through."""

    def __init__(self) -> None:
        self._head: bytearray | None = bytearray()
        self._tail = b""

    def first(self, data: bytes) -> bytes | None:
        """The bytes to pass on; None until the first event is complete.

        Comments before it count as no event: engines keep connections alive with them.
        """
        head = self._head
        if head is None:
            return data
        head += data
        whole = _events(bytes(head))[:-1]
        if not any(map(_data, whole)) and len(head) <= HEAD:
            return None
        self._head = None
        return bytes(head)

    def keep(self, data: bytes) -> None:
        """Remember the end."""
        self._tail = (self._tail + data)[-TAIL:]

    def counts(self) -> TokenCounts:
        """By the last chunk with a usage."""
        for event in reversed(_events(self._tail)):
            if b'"usage"' in event:
                found = TokenCounts.of(_json(_data(event)))
                if found.made:
                    return found
        return TokenCounts()


def stream_error(head: bytes) -> str:
    """The message where a stream begins with an error event; empty where it does not."""
    data = next(filter(None, map(_data, _events(head))), b"")
    value = _json(data)
    if value is None or "choices" in value:
        return ""
    failed = "error" in value or value.get("object") == "error"
    return message_of(value) if failed else ""


def message_of(value: JsonMap) -> str:
    """The text of an OpenAI error object, bounded; a plain text where it has none."""
    error = value.get("error")
    text = error.get("message") if isinstance(error, dict) else error or value.get("message")
    return text[:300] if isinstance(text, str) else "an error without a message"


def _events(stream: bytes) -> list[bytes]:
    """The events of a piece of a stream; the last one may not have ended."""
    return stream.replace(b"\r\n", b"\n").split(b"\n\n")


def _data(event: bytes) -> bytes:
    """The first line of an event's data; empty where it has none, as a comment."""
    lines = (line for line in event.split(b"\n") if line.startswith(b"data:"))
    return next(lines, b"").removeprefix(b"data:").strip()


def _json(data: bytes) -> JsonMap | None:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
