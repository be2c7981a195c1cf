"""Many gateways before the same prefills in virtual time, each with one policy of forwarding.

A prefill has a slot or several and no queue; what it refuses comes back after a round trip, and
then the gateway's policy decides what becomes of the request. `OnDemand` runs our decisions as they
are; the other two are what the documents of other projects say, in as few lines as it takes:

- `PairWalk` (Kthena's router): candidates in order of their score, here the gateway's own open
  legs; any refusal sends the request to the next one at once, and when every one has refused once
  the client gets an error.
- `ExcludeAndRetry` (Dynamo's frontend): a refused request goes to another worker, those that
  refused it excluded, a limited number of times; workers have a queue of two in front of their
  slots.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.support.dispatch_world import Device, scenario

from pdserve.forwarding.dispatch import Dispatcher, Ticket
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.ranking import NEVER
from pdserve.forwarding.scenario_view import View
from pdserve.wire.hints import Hint

ROUND_TRIP = 0.0005
SERVICE = (0.1, 0.4)
"""Seconds that a prefill takes, evenly spread."""
PATIENCE = 0.7
"""Seconds after its arrival until which a prefill must have accepted a request."""
MIGRATIONS = 3
"""Retries of a request by `ExcludeAndRetry`."""
QUEUE = 2


@dataclass
class Tally:
    """What became of the requests."""

    offered: int = 0
    attempts: int = 0
    in_time: int = 0
    out_of_attempts: int = 0
    most: int = 0
    """Attempts of one request."""

    @property
    def mean(self) -> float:
        """Attempts per offered request."""
        return self.attempts / self.offered

    @property
    def served(self) -> float:
        """Share of the offered requests that a prefill began in time."""
        return self.in_time / self.offered

    @property
    def given_up(self) -> float:
        """Share of the offered requests that ended for want of attempts."""
        return self.out_of_attempts / self.offered


@dataclass(eq=False)
class Asked:
    """One request at one gateway."""

    due: float
    service: float
    attempts: int = 0
    refused_by: set[int] = field(default_factory=set)


class Clock:
    """Events in order of their time; nothing sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do something at `when`."""
        heapq.heappush(self._events, (when, next(self._order), action))

    def run(self) -> None:
        """Until nothing is to come."""
        while self._events:
            self.now, _, action = heapq.heappop(self._events)
            action()


class Prefills:
    """The prefills themselves, and the network before them."""

    def __init__(self, clock: Clock, count: int, slots: int, queue: int, tally: Tally) -> None:
        self.clock, self.tally = clock, tally
        self.devices = [Device(slots + queue) for _ in range(count)]
        self.slots = slots
        self._epoch = itertools.count()

    def ask(
        self, number: int, asked: Asked, answer: Callable[[bool, Hint], None],
        ended: Callable[[Hint], None],
    ) -> None:  # fmt: skip
        """Send one attempt; `answer` comes a round trip later, `ended` when it was computed."""
        asked.attempts += 1
        self.tally.attempts += 1
        self.tally.most = max(self.tally.most, asked.attempts)
        self.clock.at(
            self.clock.now + ROUND_TRIP / 2, lambda: self._arrive(number, asked, answer, ended)
        )

    def _arrive(
        self, number: int, asked: Asked, answer: Callable[[bool, Hint], None],
        ended: Callable[[Hint], None],
    ) -> None:  # fmt: skip
        device, now = self.devices[number], self.clock.now
        busy = sorted(t for t in device.busy_until if t > now)
        begins = now if len(busy) < self.slots else busy[len(busy) - self.slots]
        taken = device.accept(now, begins + asked.service - now)
        if taken and begins <= asked.due:
            self.tally.in_time += 1
        hint = device.hint(now, next(self._epoch))
        self.clock.at(now + ROUND_TRIP / 2, lambda: answer(taken, hint))
        if taken:
            end = begins + asked.service
            self.clock.at(end, lambda: self._end(device, ended))

    def _end(self, device: Device, ended: Callable[[Hint], None]) -> None:
        hint = device.hint(self.clock.now, next(self._epoch))
        self.clock.at(self.clock.now + ROUND_TRIP / 2, lambda: ended(hint))


class OnDemand:
    """Our dispatcher with a view of its own."""

    queue = 0

    def __init__(self, prefills: Prefills, seed: int) -> None:
        count = len(prefills.devices)
        self._prefills, self._clock = prefills, prefills.clock
        view = View(scenario(([prefills.slots] * count, [1 << 20])), {})
        self._number = {p.id: n for n, p in enumerate(view.groups[0].prefills)}
        self._dispatcher = Dispatcher(view, random.Random(seed).random)
        self._asked: dict[Ticket, Asked] = {}
        self._wake = NEVER

    def offer(self, asked: Asked) -> None:
        """A client's request comes."""
        ticket = self._dispatcher.offer(asked.due)
        if ticket is not None:
            self._asked[ticket] = asked
            self._step()

    def _step(self) -> None:
        now = self._clock.now
        step = self._dispatcher.step(now)
        for send in step.sends:
            self._send(send.ticket, send.prefill, now)
        for ticket, _ in step.gave_up:
            del self._asked[ticket]
        if step.wake_at < NEVER:
            due = max(step.wake_at, now + 1e-6)
            if not now < self._wake <= due:
                self._wake = due
                self._clock.at(due, self._step)

    def _send(self, ticket: Ticket, prefill: Instance, sent: float) -> None:
        def answer(taken: bool, hint: Hint) -> None:
            if not taken:
                prefill.rejected(hint, self._clock.now)
                self._dispatcher.back(ticket, self._clock.now)
                self._step()

        def ended(hint: Hint) -> None:
            prefill.accepted(hint, self._clock.now, sent)
            prefill.released()
            self._step()

        self._prefills.ask(self._number[prefill.id], self._asked[ticket], answer, ended)


class PairWalk:
    """Each candidate once, at once, in order of the score."""

    queue = 0
    limit: int | None = None
    """Attempts of one request; None: one at each candidate."""

    def __init__(self, prefills: Prefills, seed: int) -> None:
        self._prefills, self._rng = prefills, random.Random(seed)
        self._legs = [0] * len(prefills.devices)

    def offer(self, asked: Asked) -> None:
        """A client's request comes, or one comes back."""
        left = [n for n in range(len(self._legs)) if n not in asked.refused_by]
        if not left or (self.limit is not None and asked.attempts >= self.limit):
            self._prefills.tally.out_of_attempts += 1
            return
        if self._prefills.clock.now > asked.due:
            return
        number = min(left, key=lambda n: (self._legs[n], self._rng.random()))
        self._legs[number] += 1

        def answer(taken: bool, hint: Hint) -> None:
            if not taken:
                self._legs[number] -= 1
                asked.refused_by.add(number)
                self.offer(asked)

        def ended(hint: Hint) -> None:
            self._legs[number] -= 1

        self._prefills.ask(number, asked, answer, ended)


class ExcludeAndRetry(PairWalk):
    """A limited number of retries; workers queue."""

    queue = QUEUE
    limit = MIGRATIONS + 1


Policy = type[OnDemand] | type[PairWalk]


def run(policy: Policy, gateways: int, prefills: int, load: float, seconds: float) -> Tally:
    """Poisson arrivals at `load` times what the prefills can do, spread over the gateways."""
    clock, tally, rng = Clock(), Tally(), random.Random(11)
    there = Prefills(clock, prefills, 1, policy.queue, tally)
    at_gateways = [policy(there, seed) for seed in range(gateways)]
    rate = load * prefills / (sum(SERVICE) / 2)
    when = 0.0
    while (when := when + rng.expovariate(rate)) < seconds:
        asked = Asked(when + PATIENCE, rng.uniform(*SERVICE))
        gateway = rng.choice(at_gateways)
        clock.at(when, lambda g=gateway, a=asked: g.offer(a))  # type: ignore[misc]
        tally.offered += 1
    clock.run()
    return tally
