"""The waiting room of one scenario, and the choice of the prefill that is asked next.

Requests wait here, never inside an instance. `step(now)`:
1. Requests whose deadline passed leave the room.
2. While some prefill is worth asking and its group has decode credit, the request with the
   earliest deadline goes to the best one. A prefill is skipped until its hint says free; when the
   hint's time has come one request probes it while the others stay asleep (own open legs count as
   accepted until they are refused), so a busy scenario costs one attempt per freed slot and not
   one per waiting request.
3. The answer says when to look again if nothing happens before.

Order of prefills: known free before merely due; fewest of our own open legs; random. With an
`Affinity`, a request goes to one that holds the beginning of its prompt where that saves time; it
may wait for a busy one, one request for each such prefill, while those behind it go on.

A request that a prefill failed is sent to other live prefills during half of the time that it has
left: a hanging prefill looks idle, as does one whose group has lost its decodes. A request that was
refused keeps its turn; `attempt_pacing` says when it may ask again, so that it goes on until its
deadline at a bounded cost.

The caller sends, and reports every answer to the `Instance` records and back here.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count
from math import fsum
from typing import Literal, NamedTuple

from pdserve.forwarding.attempt_pacing import next_attempt
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.prefix.affinity import Affinity, KnownPrompt
from pdserve.forwarding.ranking import NEVER
from pdserve.forwarding.scenario_view import View

GaveUp = Literal["deadline", "no_decode", "shed"]
"""Why a request left the room unserved. `no_decode`: its deadline passed while a prefill would
have taken it, but no group with such a prefill had decode credit. `shed`: it made room for another.
"""
MAX_WAIT = 60.0
_MOST_STALE = 64
"""Deadlines of requests that left, beside as many as wait."""
_OVERDUE = 0.001
"""Seconds until a prefill is free whose slots should be free already."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One request on its way to a prefill.

    `deadline`: latest time of acceptance. `rank`: its turn, not after the deadline it came with
    (`fair_turns`); a retried request may wait for longer and keeps its turn.
    """

    deadline: float
    seq: int
    rank: float = 0.0
    attempts: int = 0
    first_sent: float = 0.0
    """Time of its first attempt."""
    not_before: float = 0.0
    """Earliest time of its next attempt (see `pacing`)."""
    waiting: bool = False
    failed_by: set[str] = field(default_factory=set)
    """Ids of prefills that failed it, or are of no use, to be left alone for it until
    `excluded_until`."""
    excluded_until: float = 0.0
    prompt: KnownPrompt | None = None
    """Its prompt's blocks, where prefixes count."""
    waits_for: Instance | None = None
    """A busy prefill that holds the beginning of its prompt, until `waits_until`."""
    work: float = 0.0
    """Seconds that it will take there."""
    waits_until: float = 0.0
    """Set once: a request waits no longer than the first hit that it waited for saves."""
    sheddable: bool = False
    """It makes room for others when the room is full."""
    suspect: bool = False
    """A prefill broke under it: its turn on another must not cost a second suspect's."""

    def __hash__(self) -> int:
        """By identity: compiled, a class with `__lt__` alone has no hash."""
        return id(self)

    def __lt__(self, other: Ticket) -> bool:
        """Earliest rank first, then order of arrival."""
        return (self.rank, self.seq) < (other.rank, other.seq)


class Send(NamedTuple):
    """Send this ticket's prefill leg to `prefill`, already counted as sent there."""

    ticket: Ticket
    prefill: Instance


@dataclass(slots=True)
class Step:
    """What to do now, and when to step again if nothing happens before (NEVER: no need)."""

    sends: list[Send] = field(default_factory=list)
    gave_up: list[tuple[Ticket, GaveUp]] = field(default_factory=list)
    wake_at: float = NEVER


class Dispatcher:
    """State of one (process, scenario). `random` draws from [0, 1) and breaks ties."""

    def __init__(
        self, view: View, random: Callable[[], float], room_limit: int = 1024,
        affinity: Affinity | None = None,
    ) -> None:  # fmt: skip
        self.view = view
        self.affinity = affinity
        """Prefers prefills by prefixes; None: prompts do not count."""
        self._random = random
        self._room_limit = room_limit
        self.room: list[Ticket] = []
        """Requests that wait, in the order of their turns; for reading only."""
        self._seq = count()
        self._due: list[tuple[float, int, Ticket]] = []
        """A heap of deadlines as they were when requests came in; see `_next_deadline`."""
        self._shed: list[Ticket] = []
        self._on_trial: dict[Ticket, Instance] = {}
        """Suspects that are at a prefill now: at most one at each."""
        self._awaited: dict[Instance, list[Ticket]] = {}
        """Requests that wait for a busy prefill, in the order of their coming."""

    @property
    def waiting(self) -> int:
        """How many requests are in the room."""
        return len(self.room)

    def offer(
        self, deadline: float, prompt: KnownPrompt | None = None, *,
        rank: float | None = None, sheddable: bool = False,
    ) -> Ticket | None:  # fmt: skip
        """Let a new request into the room; None when the room is full.

        Args:
            deadline: monotonic seconds until which a prefill must have accepted it.
            prompt: its blocks, where prefixes count.
            rank: its turn, at most `deadline`; None: its deadline.
            sheddable: it makes room for one that is not.
        """
        if len(self.room) >= self._room_limit and (sheddable or not self._make_room()):
            return None
        turn = deadline if rank is None else rank
        ticket = Ticket(deadline, next(self._seq), turn, prompt=prompt, sheddable=sheddable)
        self._enter(ticket)
        return ticket

    def _make_room(self) -> bool:
        """Let the last sheddable request go, if there is one."""
        last = next((n for n in range(len(self.room) - 1, -1, -1) if self.room[n].sheddable), None)
        if last is not None:
            self._shed.append(self._leave(last))
        return last is not None

    def back(self, ticket: Ticket, now: float) -> None:
        """Put a refused or failed request back at its turn; `now` in monotonic seconds."""
        self.settled(ticket)
        if ticket.attempts:
            count = self.view.prefill_count
            ticket.not_before = next_attempt(ticket.first_sent, ticket.attempts, count, now)
        self._enter(ticket)

    def failed(self, ticket: Ticket, prefill: Instance, now: float) -> None:
        """Note that `prefill` did not do what this request needs: others are tried first."""
        ticket.failed_by.add(prefill.id)
        ticket.excluded_until = now + max(0.0, ticket.deadline - now) / 2

    def lost_decode(self, ticket: Ticket, now: float) -> None:
        """Note that this request lost a decode: groups that have a live one are tried first.

        Its own may have no other, and looks idle now. `now` in monotonic seconds.
        """
        for group in self.view.groups:
            if all(d.health.ejected for d in group.decodes):
                for prefill in group.prefills:
                    self.failed(ticket, prefill, now)

    def withdraw(self, ticket: Ticket) -> None:
        """Take a request out of the room; nothing happens where it is not in it."""
        if ticket.waiting:
            ticket.waiting = False
            self._wait_no_more(ticket)
            self.room.remove(ticket)

    def settled(self, ticket: Ticket) -> bool:
        """Note that no prefill computes for it any more.

        True when another suspect may have its turn now.
        """
        return self._on_trial.pop(ticket, None) is not None

    def wait(self, now: float) -> float:
        """Expected seconds until a request that came now would be at a prefill (0 to `MAX_WAIT`).

        The first slot that frees, then the room ahead at the pace of all slots, then the decodes
        where they are what is short.
        """
        prefills = [p for g in self.view.groups for p in g.prefills]
        if not prefills:
            return MAX_WAIT
        first = min(p.expected_free(now) for p in prefills) - now
        paces = [p.pace for p in prefills if not p.health.ejected]
        pace = 1 / fsum(1 / p for p in paces) if paces and all(p > 0 for p in paces) else 0.0
        # Nothing was measured: a target's time is what a prefill may take.
        wait = first + len(self.room) * pace if pace else self.view.scenario.slo.ttft
        if self.view.index.blocked(now):
            decodes = (d.expected_free(now) for g in self.view.groups for d in g.decodes)
            wait = max(wait, min(decodes, default=now) - now)
        return min(max(0.0, wait), MAX_WAIT)

    def step(self, now: float) -> Step:
        """What to do at `now` (monotonic seconds); see the module's text."""
        step = Step(gave_up=[(ticket, "shed") for ticket in self._shed])
        self._shed.clear()
        if self._next_deadline() <= now:
            reason: GaveUp = "no_decode" if self.view.index.blocked(now) else "deadline"
            while self._next_deadline() <= now:
                ticket = self._due[0][2]
                self._leave(self.room.index(ticket))
                step.gave_up.append((ticket, reason))
        self._serve_waits(step, now)
        place = 0
        while place < len(self.room):
            ticket = self.room[place]
            if ticket.not_before > now:
                step.wake_at = min(step.wake_at, ticket.not_before)
                place += 1
                continue
            excluded = self._excluded(ticket, now)
            chosen, later = self._choose(now, excluded)
            if chosen is not None and not excluded and not ticket.suspect:
                chosen = self._preferred(step, ticket, chosen, now)
            if ticket.waits_for is not None:
                place += 1
                continue
            if chosen is not None:
                self._send(step, place, chosen, now)
                continue
            step.wake_at = min(step.wake_at, later)
            if not excluded:
                break  # no request after it would find one
            if now < ticket.excluded_until:
                step.wake_at = min(step.wake_at, ticket.excluded_until)
            place += 1
        step.wake_at = min(step.wake_at, self._next_deadline()) if self.room else NEVER
        return step

    def _send(self, step: Step, place: int, prefill: Instance, now: float) -> None:
        ticket = self._leave(place)
        ticket.first_sent = ticket.first_sent if ticket.attempts else now
        ticket.attempts += 1
        if ticket.suspect:
            self._on_trial[ticket] = prefill
        prefill.sent(now)
        step.sends.append(Send(ticket, prefill))

    def _preferred(self, step: Step, ticket: Ticket, best: Instance, now: float) -> Instance | None:
        """The prefill to ask where `best` is the usual one; None: the request waits for another."""
        if self.affinity is None or ticket.prompt is None:
            return best
        if ticket.waits_for is not None:
            return None
        end = min(ticket.waits_until or NEVER, ticket.deadline)
        choice = self.affinity.prefer(
            ticket.prompt, best, now, lambda prefill: self._delay(prefill, end, now)
        )
        prefill = choice.prefill
        if choice.until <= now:
            return prefill
        ticket.waits_for, ticket.waits_until = prefill, min(end, choice.until)
        ticket.work = self.affinity.seconds(ticket.prompt.tokens - choice.tokens)
        self._awaited.setdefault(prefill, []).append(ticket)
        step.wake_at = min(step.wake_at, self._next_look(ticket, prefill, now))
        return None

    def _delay(self, prefill: Instance, end: float, now: float) -> float:
        """Seconds until a prefill takes one more request; NEVER: not by `end`."""
        ahead = self._awaited.get(prefill, ())
        if not ahead and self._may_ask(prefill, now):
            return 0.0
        if prefill.health.ejected or not self.view.index.open_to(prefill, now):
            return NEVER
        free = max(_OVERDUE, prefill.expected_free(now) - now)
        delay = free + fsum(t.work for t in ahead)
        return delay if now + delay < end else NEVER

    def _serve_waits(self, step: Step, now: float) -> None:
        """Send requests to the prefills that they waited for; end waits that are over."""
        for prefill, waiting in list(self._awaited.items()):
            for ticket in list(waiting):
                if self._may_ask(prefill, now):
                    self._send(step, self.room.index(ticket), prefill, now)
                elif now < ticket.waits_until:
                    step.wake_at = min(step.wake_at, self._next_look(ticket, prefill, now))
                else:
                    self._wait_no_more(ticket)

    def _next_look(self, ticket: Ticket, prefill: Instance, now: float) -> float:
        """When a wait ends, or may end, without an event of our own."""
        free = prefill.next_try(now)
        return min(ticket.waits_until, free if free > now else self.view.index.later(now))

    def _may_ask(self, prefill: Instance, now: float) -> bool:
        return prefill.next_try(now) <= now and self.view.index.open_to(prefill, now)

    def _wait_no_more(self, ticket: Ticket) -> None:
        if ticket.waits_for is not None:
            waiting = self._awaited[ticket.waits_for]
            waiting.remove(ticket)
            if not waiting:
                del self._awaited[ticket.waits_for]
            ticket.waits_for = None

    def _next_deadline(self) -> float:
        """The earliest deadline in the room; NEVER when it is empty."""
        due = self._due
        while due:
            deadline, seq, ticket = due[0]
            if ticket.waiting and ticket.deadline <= deadline:
                return deadline
            heappop(due)
            if ticket.waiting:  # it was given more time
                heappush(due, (ticket.deadline, seq, ticket))
        return NEVER

    def _excluded(self, ticket: Ticket, now: float) -> Collection[str]:
        """Prefills that this request must not go to now."""
        trial = {p.id for p in self._on_trial.values()} if ticket.suspect else set()
        if now >= ticket.excluded_until:
            return trial
        others = (p for g in self.view.groups for p in g.prefills if p.id not in ticket.failed_by)
        return trial if all(p.health.ejected for p in others) else ticket.failed_by | trial

    def _choose(self, now: float, excluded: Collection[str]) -> tuple[Instance | None, float]:
        """The best prefill to ask now; without one, when another may become worth asking."""
        if not excluded:
            chosen = self.view.index.prefill(now, self._random)
            return chosen, NEVER if chosen is not None else self.view.index.later(now)
        # Faults are rare: such a request looks at all prefills.
        able = [
            p
            for group in self.view.groups
            if group.decode_credit(now) > 0
            for p in group.prefills
            if p.next_try(now) <= now and p.id not in excluded
        ]
        if not able:
            return None, self.view.index.later(now)
        return min(able, key=lambda p: (p.free <= 0, p.used, self._random())), NEVER

    def _enter(self, ticket: Ticket) -> None:
        ticket.waiting = True
        insort(self.room, ticket)
        if len(self._due) > 2 * len(self.room) + _MOST_STALE:
            self._due = [(t.deadline, t.seq, t) for t in self.room]
            heapify(self._due)
        else:
            heappush(self._due, (ticket.deadline, ticket.seq, ticket))

    def _leave(self, place: int) -> Ticket:
        ticket = self.room.pop(place)
        ticket.waiting = False
        self._wait_no_more(ticket)
        return ticket
