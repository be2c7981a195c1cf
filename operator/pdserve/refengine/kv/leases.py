"""KV of finished prefills, kept until a decode has pulled it, it is released, or its lease ends.

Pure bookkeeping: the clock is an argument, and the owner gets the results by callbacks. While a
pull is under way the lease does not end (for up to `grace` seconds). After a failed pull the KV
stays, so that another decode can try.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pdserve.refengine.kv.payload import Payload

Ending = Literal["pulled", "released", "expired"]


@dataclass(slots=True)
class HeldKv:
    """One request's KV. Times are of the owner's monotonic clock, in seconds."""

    payload: Payload
    since: float
    expires: float
    first_pull: float | None = None
    pulling_since: float | None = None


class Leases:
    """All KV that this prefill keeps for decodes."""

    def __init__(
        self, seconds: float, grace: float, ended: Callable[[str, HeldKv, Ending], None]
    ) -> None:
        self._seconds, self._grace, self._ended = seconds, grace, ended
        self._held: dict[str, HeldKv] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._held

    def get(self, request_id: str) -> HeldKv | None:
        """What is held for a request."""
        return self._held.get(request_id)

    def oldest(self) -> float | None:
        """When the longest-held KV was ready (seconds on the caller's clock).

        None when none is held.
        """
        return min((h.since for h in self._held.values()), default=None)

    def hold(self, request_id: str, payload: Payload, now: float) -> HeldKv:
        """Keep a payload from `now` on, for the time of a lease.

        Raises:
            ValueError: the request's payload is held already.
        """
        if request_id in self._held:
            raise ValueError(f"KV of request {request_id!r} is held already")
        held = self._held[request_id] = HeldKv(payload, now, now + self._seconds)
        return held

    def begin_pull(self, request_id: str, now: float) -> Payload | None:
        """The payload, if it is still held, else None; `now` in seconds on the caller's clock.

        A pull prolongs the lease to its own grace at least.
        """
        held = self._held.get(request_id)
        if held is None:
            return None
        held.pulling_since = now
        if held.first_pull is None:
            held.first_pull = now
        return held.payload

    def pull_failed(self, request_id: str) -> None:
        """Let the lease count again after a pull that broke."""
        held = self._held.get(request_id)
        if held is not None:
            held.pulling_since = None

    def end(self, request_id: str, ending: Ending) -> bool:
        """Free a request's KV; False when nothing was held."""
        held = self._held.pop(request_id, None)
        if held is None:
            return False
        self._ended(request_id, held, ending)
        return True

    def expire(self, now: float) -> None:
        """Free KV whose lease ended until `now` (seconds on the caller's clock)."""
        for request_id, held in list(self._held.items()):
            if now >= self._limit(held):
                self.end(request_id, "expired")

    def next_expiry(self) -> float | None:
        """Earliest time on the caller's clock at which `expire` may end a lease.

        None without any.
        """
        return min((self._limit(h) for h in self._held.values()), default=None)

    def _limit(self, held: HeldKv) -> float:
        if held.pulling_since is None:
            return held.expires
        return max(held.expires, held.pulling_since + self._grace)
