"""What one gateway process knows of one instance: its own open legs, hints, health.

`used` is exact for this process; `free` is an estimate: the last hint, corrected by what this
process did since. From both follow `next_try`, the earliest time at which asking makes sense, and
for a decode its `credit`. Neighbours: `scenario_view` groups these; `dispatch` and `decode` choose
among them.
"""

from __future__ import annotations

from pdserve.forwarding.ejection import Health, doubled
from pdserve.forwarding.hints import MAX_FREE_IN, supersedes
from pdserve.forwarding.ranking import NEVER
from pdserve.terms.failures import Failure
from pdserve.wire.hints import Hint
from pdserve.wire.routes import RouteInstance

PREFETCH_CREDITS = 2
"""Requests a decode may fetch ahead of a free slot, until its hints say otherwise (q_d)."""
BACKOFF_FIRST = 0.005
BACKOFF_MAX = 0.080
BACKOFF_NOT_SERVING = 1.0
"""After `draining` or `not_ready`: the next route table normally removes the instance first."""
SURE_PLACES = 3.0
"""Part of the handoff target in which a slot must free on average: one in twenty takes longer."""
_LEARN = 0.2


class Instance:
    """Mutable record of one routed instance, shared by all requests of the process."""

    __slots__ = (
        "_backoff_until", "_changed", "_epoch", "_free_at", "_hinted_at", "_hold_seconds",
        "_notes", "_rejections", "free", "group", "health", "held", "legs", "limit", "noted",
        "route", "total",
    )  # fmt: skip

    def __init__(self, route: RouteInstance, group: int) -> None:
        self.route = route
        self.group = group
        self.total = route.slots + (PREFETCH_CREDITS if route.role == "decode" else 0)
        self.free = self.total
        self.limit = 0
        """Decode: requests above which its answers get too slow, of all gateways; 0: none."""
        self.legs = 0
        """Requests sent and not answered yet."""
        self.held = 0
        """Prefill: KV it keeps for us. Decode: our streams running there."""
        self.health = Health()
        self._epoch = -1
        self._hinted_at = -NEVER
        self._free_at = 0.0
        self._backoff_until = 0.0
        self._rejections = 0
        self._hold_seconds = 0.0
        self._changed = 0.0
        self._notes: list[Instance] | None = None
        self.noted = False
        """It is in the list that `watch` gave."""

    def watch(self, notes: list[Instance] | None) -> None:
        """Add this record to `notes` now and at every change, once until `noted` is set back.

        None: do so no more.
        """
        self._notes, self.noted = notes, False
        self._note()

    def _note(self) -> None:
        if not self.noted and self._notes is not None:
            self.noted = True
            self._notes.append(self)

    @property
    def id(self) -> str:
        """Instance id, unique in the service."""
        return self.route.id

    @property
    def used(self) -> int:
        """How many slots this process occupies there: requests sent, KV held, streams running."""
        return self.legs + self.held

    def next_try(self, now: float) -> float:
        """Earliest time at which to ask: now, later, or NEVER until one of our own legs ends.

        Times are monotonic seconds, here and below.
        """
        if self.legs + self.held >= self.total:
            return NEVER
        at = self.health.next_try(now)
        if self.free <= 0 and self._free_at > at:
            at = self._free_at
        return at if at > self._backoff_until else self._backoff_until

    def outlook(self, now: float, handoff: float = NEVER) -> tuple[float, int, float]:
        """Decode: `next_try`, `credit` and `next_credit` at `now`, found together."""
        at = self.next_try(now)
        if at > now:
            return at, 0, at
        seconds = self._hold_seconds
        # Slots above the limit stay empty, whichever gateway's requests are in the others.
        unused = max(0, self.total - self.limit) if self.limit else 0
        if seconds <= 0:
            return at, max(0 if unused else 1, self.free - unused), NEVER
        pace = seconds / max(1, self.route.slots)
        grown = int((now - self._changed) / pace)
        later = self._changed + (grown + 1) * pace
        places = 0 if unused else max(0, self.total - self.route.slots)
        soon = int(handoff / (SURE_PLACES * pace)) if handoff < NEVER else places
        too_slow = max(places - soon, 0)
        credit = min(self.total - self.legs - self.held, self.free + grown) - too_slow - unused
        return at, max(0, credit), later

    def credit(self, now: float, handoff: float = NEVER) -> int:
        """Decode: requests it would probably take now (0 or more) and start within `handoff`.

        A request that arrives while all slots run waits in a prefetch place until a stream ends,
        once per (stream time / slots); places where it may well wait longer do not count. Streams
        of other gateways end unseen, so the estimate of free places grows at the same pace.
        """
        return self.outlook(now, handoff)[1]

    def next_credit(self, now: float) -> float:
        """When `credit` may have grown without an event of our own; NEVER if it cannot.

        Seconds on the clock of `now`.
        """
        return self.outlook(now)[2]

    @property
    def pace(self) -> float:
        """Mean seconds between two slots that free here when all are in use; 0: not known yet."""
        return self._hold_seconds / max(1, self.route.slots)

    def expected_free(self, now: float) -> float:
        """When a slot is likely to be free, our own legs included; `now` or later, never NEVER.

        Seconds on the clock of `now`.
        """
        if self.used < self.total:
            later = self.next_try(now)
            return later if later < NEVER else now + self.pace
        if not self._hold_seconds:
            # Nothing has ended here yet: as long again as it has lasted, and a second at least.
            return now + max(1.0, now - self._changed)
        return max(now, self._changed + self._hold_seconds, self._free_at)

    def sent(self, now: float) -> None:
        """Count a leg that goes out. Without an answer it is taken to be accepted."""
        self.legs += 1
        self.health.attempt()
        self._changed = now
        if self.free > 0:
            self.free -= 1
        if self.free == 0:
            self._free_at = max(self._free_at, now + self._hold_seconds / self.total)
        self._note()

    def taken(self) -> None:
        """Count the leg as running although its answer is not here yet (a reply sent whole)."""
        self.legs -= 1
        self.held += 1
        self._note()

    def revoked(self) -> None:
        """Undo `taken`: an answer contradicts it."""
        self.legs += 1
        self.held -= 1
        self._note()

    def accepted(self, hint: Hint | None, now: float, sent_at: float) -> None:
        """Count the leg as answered with success; its slot stays in use until `released`.

        `sent_at`: when it was sent; a prefill's answer teaches how long a slot is in use.
        """
        self.legs -= 1
        self.held += 1
        self._rejections = 0
        self._backoff_until = 0.0
        self.health.success()
        if self.route.role == "prefill":
            self._learn(now - sent_at)
        self.hinted(hint, now)
        self._note()

    def rejected(self, hint: Hint | None, now: float, serving: bool = True) -> None:
        """Count the leg as refused and do not ask again before a pause.

        5 ms, doubled with each refusal in a row up to 80 ms, unless a hint says when a slot is
        free; 1 s where `serving` is False: the instance drains or is not ready.
        """
        self.legs -= 1
        self._rejections += 1
        self.health.success()
        self.free = 0
        fresh = self.hinted(hint, now)
        if not serving:
            self._backoff_until = now + BACKOFF_NOT_SERVING
        elif hint is None or not fresh or hint.free > 0 or hint.free_in <= BACKOFF_FIRST:
            self._backoff_until = now + doubled(BACKOFF_FIRST, self._rejections - 1, BACKOFF_MAX)
        self._note()

    def failed(self, kind: Failure, now: float) -> None:
        """Count the leg as ended without a usable answer; `kind` decides about ejection."""
        self.legs -= 1
        self.free = min(self.free + 1, self.total)
        self.health.failure(kind, now)
        self._note()

    def abandoned(self) -> None:
        """Count the leg as cut by us before its answer (client gone, request served elsewhere)."""
        self.legs -= 1
        self.free = min(self.free + 1, self.total)
        self.health.abandon()
        self._note()

    def answered(self) -> None:
        """Count the leg as ended by an answer that is not about its slots."""
        self.abandoned()
        self.health.success()

    def lost(self, now: float) -> None:
        """Count what it held for us as gone: its connection was lost under a running request."""
        self.held -= 1
        self.health.failure("lost", now)
        self._note()

    def released(self, now: float | None = None, since: float = 0.0) -> None:
        """A slot it held for us is free again (KV pulled or released, stream ended).

        `now` and `since` (when it was accepted): also learn how long a slot is held.
        """
        self.held -= 1
        self.free = min(self.free + 1, self.total)
        if now is not None and self.route.role == "decode":
            self._learn(now - since)
        self._note()

    def _learn(self, seconds: float) -> None:
        share = _LEARN if self._hold_seconds else 1.0
        self._hold_seconds += share * (seconds - self._hold_seconds)

    def hinted(self, hint: Hint | None, now: float) -> bool:
        """Take a hint's counts unless a newer hint is known; True when taken, False for None."""
        if hint is None or not supersedes(hint.epoch, self._epoch, now - self._hinted_at):
            return False
        self._epoch = hint.epoch
        self._hinted_at = now
        self.total = max(1, hint.total)
        self.free = hint.free
        self._free_at = now + min(hint.free_in, MAX_FREE_IN)
        self._changed = now
        self._note()
        return True
