"""The waiting room of one scenario, and the choice of the prefill that is asked next.

Requests wait here, never inside an instance. `step(now)`:
1. Requests whose deadline passed, or whose attempts are used up, leave with the reason.
2. While some prefill is worth asking and its group has decode credit, the request with the
   earliest deadline goes to the best one. A prefill is skipped until its hint says free; when the
   hint's time has come one request probes it while the others stay asleep (own open legs count as
   accepted until they are refused), so a busy scenario costs one attempt per freed slot and not
   one per waiting request.
3. The answer says when to look again if nothing happens before.

Order of prefills: known free before merely due; fewest of our own open legs; random. Attempts per
request are at most 2M + 4 for M prefills, and the last four are spread over the time left, so that
a request never runs out of attempts long before its deadline.

The caller sends, and reports every answer to the `Instance` records and back here.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from pdserve.forwarding.instance import NEVER, Instance
from pdserve.forwarding.view import Group, View

GaveUp = Literal["deadline", "attempts"]
SPREAD_ATTEMPTS = 4


@dataclass(slots=True, eq=False)
class Ticket:
    """One request on its way to a prefill. `deadline`: latest time of acceptance."""

    deadline: float
    seq: int
    attempts: int = 0
    not_before: float = 0.0
    waiting: bool = False

    def __lt__(self, other: Ticket) -> bool:
        """Earliest deadline first, then order of arrival."""
        return (self.deadline, self.seq) < (other.deadline, other.seq)


@dataclass(frozen=True, slots=True)
class Send:
    """Send this ticket's prefill leg to `prefill`, already counted as sent there."""

    ticket: Ticket
    prefill: Instance
    group: int


@dataclass(slots=True)
class Step:
    """What to do now, and when to step again if nothing happens before (NEVER: no need)."""

    sends: list[Send] = field(default_factory=list)
    gave_up: list[tuple[Ticket, GaveUp]] = field(default_factory=list)
    wake_at: float = NEVER


class Dispatcher:
    """State of one (process, scenario). `random` draws from [0, 1) and breaks ties."""

    def __init__(self, view: View, random: Callable[[], float], room_limit: int = 1024) -> None:
        self.view = view
        self._random = random
        self._room_limit = room_limit
        self._room: list[Ticket] = []
        self._seq = count()
        self._accepts: deque[float] = deque(maxlen=64)

    @property
    def waiting(self) -> int:
        """Requests in the room."""
        return len(self._room)

    @property
    def attempt_limit(self) -> int:
        """Prefill legs one request may cost, with the present number of prefills."""
        return 2 * self.view.prefill_count + SPREAD_ATTEMPTS

    def offer(self, deadline: float) -> Ticket | None:
        """A new request enters the room; None when the room is full."""
        if len(self._room) >= self._room_limit:
            return None
        ticket = Ticket(deadline, next(self._seq))
        self._enter(ticket)
        return ticket

    def back(self, ticket: Ticket, now: float) -> None:
        """A refused or failed request returns; it keeps its place by deadline."""
        left = self.attempt_limit - ticket.attempts
        if 0 < left <= SPREAD_ATTEMPTS:
            ticket.not_before = now + max(0.0, ticket.deadline - now) / (left + 1)
        self._enter(ticket)

    def withdraw(self, ticket: Ticket) -> None:
        """The client went away."""
        if ticket.waiting:
            ticket.waiting = False
            self._room.remove(ticket)

    def accepted(self, now: float) -> None:
        """A prefill accepted some request (feeds `retry_after`)."""
        self._accepts.append(now)

    def retry_after(self, now: float) -> int:
        """Whole seconds until a place is likely: the room at the measured rate of acceptance."""
        if len(self._accepts) < 2 or now <= self._accepts[0]:
            return max(1, round(self.view.scenario.slo.ttft + 0.5))
        rate = len(self._accepts) / (now - self._accepts[0])
        return max(1, min(60, round((len(self._room) + 1) / rate + 0.5)))

    def step(self, now: float) -> Step:
        """See the module's text."""
        step = Step()
        self._drop_hopeless(now, step)
        while self._room:
            ticket = next((t for t in self._room if t.not_before <= now), None)
            if ticket is None:
                step.wake_at = min(step.wake_at, *(t.not_before for t in self._room))
                break
            chosen, later = self._choose(now)
            if chosen is None:
                step.wake_at = min(step.wake_at, later)
                break
            self._leave(ticket)
            ticket.attempts += 1
            chosen.sent(now)
            step.sends.append(Send(ticket, chosen, chosen.group))
        if self._room:
            step.wake_at = min(step.wake_at, self._room[0].deadline)
        return step

    def _drop_hopeless(self, now: float, step: Step) -> None:
        keep: list[Ticket] = []
        for ticket in self._room:
            if ticket.deadline <= now:
                step.gave_up.append((ticket, "deadline"))
            elif ticket.attempts >= self.attempt_limit:
                step.gave_up.append((ticket, "attempts"))
            else:
                keep.append(ticket)
                continue
            ticket.waiting = False
        if step.gave_up:
            self._room = keep

    def _choose(self, now: float) -> tuple[Instance | None, float]:
        best: Instance | None = None
        best_key: tuple[bool, int, float] | None = None
        later = NEVER
        for group in self.view.groups:
            if group.decode_credit(now) <= 0:
                later = min(later, group.next_credit(now))
                continue
            later = min(later, self._next_prefill(group, now))
            for prefill in group.prefills:
                if prefill.next_try(now) <= now:
                    key = (prefill.free <= 0, prefill.used, self._random())
                    if best_key is None or key < best_key:
                        best, best_key = prefill, key
        return best, later

    def _next_prefill(self, group: Group, now: float) -> float:
        return min((t for p in group.prefills if (t := p.next_try(now)) > now), default=NEVER)

    def _enter(self, ticket: Ticket) -> None:
        ticket.waiting = True
        insort(self._room, ticket)

    def _leave(self, ticket: Ticket) -> None:
        ticket.waiting = False
        self._room.remove(ticket)
