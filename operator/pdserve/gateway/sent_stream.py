"""What a client has of a streamed answer, kept so that another decode can continue it.

The ids of the tokens come with the events (`wire.calls.HEADER_EVENT_IDS`) and are few bytes each.
The request's body is kept as well, within the memory that all streams of the process share: a
stream for which there is no room cannot be continued. Neighbours: `sse` finds the ids, `delivery`
notes what was passed on, `leg_bodies` makes the request anew.
"""

from __future__ import annotations

from reprlib import repr as shown
from typing import Final

import orjson

from pdserve.engines.flow import SentPart
from pdserve.terms.json import JsonMap, JsonObject

MEMORY: Final = 64 << 20
"""Bytes of bodies and tokens that a process keeps for its open streams."""
PIECE: Final = 4096
"""Bytes of tokens that are counted at a time."""
LAST: Final = 16 << 10
"""Bytes that are kept of the last events; of a longer piece these are its end."""
MAX_TOKEN_ID: Final = (1 << 31) - 1
"""More than any vocabulary has."""
_DONE: Final = b"data: [DONE]"


class KeptMemory:
    """Bytes that are kept for open streams."""

    def __init__(self, limit: int = MEMORY) -> None:
        self.limit = limit
        self.used = 0

    def take(self, size: int) -> bool:
        """Count `size` bytes; False: there is no room for them."""
        if self.used + size > self.limit:
            return False
        self.used += size
        return True

    def free(self, size: int) -> None:
        """Count `size` bytes as free again, which `take` had counted."""
        self.used -= size


class SentStream:
    """The part of one answer that its client has."""

    __slots__ = ("_counted", "_ids", "_last", "_memory", "_room", "_whole", "goes_on", "kv")

    def __init__(self, memory: KeptMemory) -> None:
        self.kv: JsonMap | None = None
        """What the prefill's reply said of the KV; the sampler's seed is in it."""
        self.goes_on = True
        """No other decode was asked to go on, or it does: its events have ids."""
        self._memory = memory
        self._ids = bytearray()
        self._room = 0
        """Bytes that were counted for ids."""
        self._counted = 0
        self._last = b""
        self._whole = True

    def keep(self, size: int) -> bool:
        """Count the request's body, of `size` bytes; called before the client gets the first event.

        False: it is of no use, as that event has no ids or there is no room.
        """
        self._whole = self._whole and bool(self._ids) and self._take(size)
        if not self._whole:
            self._last = b""
        return self._whole

    def add(self, ids: list[bytes]) -> None:
        """Note the tokens of events, each a list of ids with commas between."""
        self.goes_on = self.goes_on or bool(ids)
        if not (self._whole and ids):
            return
        more = b",".join(ids) + b","
        if len(self._ids) + len(more) > self._room:
            self._room += max(PIECE, len(more))
            self._whole = self._take(max(PIECE, len(more)))
        self._ids += more

    def passed_on(self, events: bytes) -> None:
        """Note the last events that the client got."""
        self._last = events[-LAST:] if self._whole else b""

    def close(self) -> None:
        """The stream is over, whatever became of it."""
        self._memory.free(self._counted)
        self._counted, self._whole, self._ids, self._last = 0, False, bytearray(), b""

    @property
    def can_go_on(self) -> bool:
        """Whether all is known that another decode needs."""
        return self._whole and bool(self._ids) and self.kv is not None

    @property
    def count(self) -> int:
        """Tokens that the client has."""
        return self._ids.count(b",")

    def part(self) -> SentPart:
        """What another decode is to go on from.

        Raises:
            ValueError: the engine's ids or events are none.
        """
        head = self._event(with_choice=True)
        reply_id, created = head.get("id"), head.get("created")
        if not isinstance(reply_id, str) or type(created) is not int:
            raise ValueError("an event has no id or time of creation")
        self.goes_on = False
        return SentPart(self._tokens(), reply_id, created)

    def end(self, usage: JsonMap | None) -> bytes | None:
        """What is missing of a stream whose last token the client has; None: tokens are.

        `usage`: of the whole stream, where the client asked for it.

        Raises:
            ValueError: the engine's events are none.
        """
        if self._last.rstrip().endswith(_DONE):
            return b""
        end = _DONE + b"\n\n"
        last = self._event(with_choice=False)
        if not last["choices"]:
            return end  # that was the usage
        if last["choices"][0].get("finish_reason") is None:
            return None
        if usage is None:
            return end
        made = {**last, "choices": [], "usage": usage}
        return b"data: %b\n\n%b" % (orjson.dumps(made), end)

    def _tokens(self) -> tuple[int, ...]:
        found = tuple(map(int, bytes(self._ids[:-1]).split(b",")))
        if max(found) > MAX_TOKEN_ID:
            raise ValueError(f"a token has the id {shown(max(found))}")
        return found

    def _event(self, *, with_choice: bool) -> JsonObject:
        """The last event that the client has, or the last with a choice; raises ValueError."""
        for event in reversed(self._last.split(b"\n\n")):
            if not event.startswith(b"data: {"):
                continue
            value = orjson.loads(event[6:])
            choices = value.get("choices")
            if not isinstance(choices, list) or not all(isinstance(c, dict) for c in choices):
                raise ValueError(f"an event has choices {choices!r:.200}")
            if choices or not with_choice:
                return dict(value)
        raise ValueError("no event of a completion was passed on")

    def _take(self, size: int) -> bool:
        if not self._memory.take(size):
            return False
        self._counted += size
        return True
