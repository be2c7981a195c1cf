"""Places of one instance: requests that its engine executes, and prefills whose KV is still held.

Pure counting; the clock is an argument, in seconds. A prefill's place is taken when its request is
accepted and stays taken after its reply: until a decode has pulled the KV, the KV was released, or
its lease ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from pdserve.engines.instance_answers import SlotHint
from pdserve.terms.json import JsonMap

UNKNOWN_SECONDS = 0.05
"""How long a place is taken, as long as none has been given back."""
WEIGHT = 0.2
"""Of the newest duration in the mean."""
CLOSED_SECONDS = 1.0
"""How long no place is given after the engine itself had no room."""


@dataclass(slots=True, eq=False)
class TakenPlace:
    """One taken place."""

    name: str
    """Of the request, as the gateway calls it."""
    since: float
    state: Literal["executing", "holding", "free"] = "executing"
    kv: JsonMap = field(default_factory=dict)
    """While it holds: the parameters by which a decode pulls the KV."""
    held_since: float = 0.0
    expires: float = 0.0

    @property
    def kv_name(self) -> str:
        """Under which the engine holds the KV; empty without one."""
        name = self.kv.get("remote_request_id")
        return name if isinstance(name, str) else ""


class Places:
    """At most `total` places are taken at once."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._taken: set[TakenPlace] = set()
        self._epoch = 0
        self._mean = 0.0
        self._closed_until = 0.0

    def __iter__(self) -> Iterator[TakenPlace]:
        return iter(tuple(self._taken))

    @property
    def executing(self) -> int:
        """Requests that the engine has not answered in full."""
        return sum(place.state == "executing" for place in self._taken)

    @property
    def holding(self) -> int:
        """Finished prefills whose KV is held."""
        return len(self._taken) - self.executing

    def take(self, name: str, now: float) -> TakenPlace | None:
        """Take a place for a request; None when all are taken, or the engine had no room."""
        if len(self._taken) >= self.total or now < self._closed_until:
            return None
        place = TakenPlace(name, now)
        self._taken.add(place)
        self._epoch += 1
        return place

    def hold(self, place: TakenPlace, kv: JsonMap, now: float, lease: float) -> None:
        """Keep a place after its reply, for at most `lease` seconds."""
        if place.state == "executing":
            place.state, place.kv = "holding", kv
            place.held_since, place.expires = now, now + lease

    def free(self, place: TakenPlace, now: float) -> bool:
        """Give a place back; False when it was free already."""
        if place.state == "free":
            return False
        place.state = "free"
        self._taken.discard(place)
        self._epoch += 1
        lasted = max(0.0, now - place.since)
        self._mean = lasted if not self._mean else self._mean + WEIGHT * (lasted - self._mean)
        return True

    def close(self, now: float) -> None:
        """Give no place for `CLOSED_SECONDS`: the engine has less room than there are places."""
        self._closed_until = now + CLOSED_SECONDS
        self._epoch += 1

    def find(self, name: str) -> TakenPlace | None:
        """The place of a request, by its own name or by that of its KV."""
        return next((p for p in self._taken if name and name in (p.name, p.kv_name)), None)

    def overdue(self, now: float) -> list[TakenPlace]:
        """Places whose lease has ended."""
        return [p for p in self._taken if p.state == "holding" and p.expires <= now]

    def hint(self, now: float) -> SlotHint:
        """What replies say of free places; the next one is expected after the mean duration."""
        free = self.total - len(self._taken)
        wait = 0
        if now < self._closed_until:
            wait = max(1, round((self._closed_until - now) * 1000))
            return SlotHint(0, self.total, wait, self._epoch)
        if not free:
            oldest = min(place.since for place in self._taken)
            expected = oldest + (self._mean or UNKNOWN_SECONDS) - now
            wait = max(1, round(expected * 1000))
        return SlotHint(free, self.total, wait, self._epoch)
