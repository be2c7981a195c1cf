"""A small discrete-event world around the dispatcher's real decisions.

Prefills have slots that hold a request for a service time; an attempt is answered at once (refused)
or after the service time (accepted). Nothing sleeps, every run is reproducible.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from pdserve.forwarding.dispatch import Dispatcher, Send, Ticket
from pdserve.forwarding.ranking import NEVER
from pdserve.forwarding.scenario_view import View
from pdserve.terms import Slo
from pdserve.wire.hints import Hint
from pdserve.wire.routes import RouteGroup, RouteInstance, RouteScenario

SLO = Slo(ttft=1.0, handoff=0.2, tpot=0.05, attainment=0.99)


def scenario(*groups: tuple[list[int], list[int]]) -> RouteScenario:
    """Groups given as (slots of each prefill, slots of each decode)."""
    made = []
    for g, (prefills, decodes) in enumerate(groups):
        instances = [
            RouteInstance(f"g{g}p{i}", "prefill", f"http://p{g}{i}", slots)
            for i, slots in enumerate(prefills)
        ] + [
            RouteInstance(f"g{g}d{i}", "decode", f"http://d{g}{i}", slots)
            for i, slots in enumerate(decodes)
        ]
        made.append(RouteGroup(g, "r", tuple(instances)))
    return RouteScenario("s", SLO, tuple(made))


@dataclass
class Device:
    """The instance's own truth, which only it knows."""

    slots: int
    busy_until: list[float] = field(default_factory=list)
    others: int = 0
    """Slots that other gateways occupy."""

    def accept(self, now: float, seconds: float) -> bool:
        self.busy_until = [t for t in self.busy_until if t > now]
        if len(self.busy_until) + self.others >= self.slots:
            return False
        self.busy_until.append(now + seconds)
        return True

    def hint(self, now: float, epoch: int) -> Hint:
        busy = sorted(t for t in self.busy_until if t > now)
        free = max(0, self.slots - len(busy) - self.others)
        free_in = 0.0 if free or not busy else busy[0] - now
        return Hint(free, self.slots, free_in, epoch)


class World:
    """Runs a dispatcher against devices."""

    def __init__(
        self, view: View, seed: int = 1, hints: bool = True, service: float = 0.25
    ) -> None:
        self.now = 0.0
        self.view = view
        self.dispatcher = Dispatcher(view, random.Random(seed).random)
        self.devices = {i.id: Device(i.total) for i in view.instances()}
        self.hints = hints
        self.service = service
        self.accepted: list[tuple[float, Ticket]] = []
        self.gave_up: list[tuple[float, Ticket, str]] = []
        self.steps = 0
        self.refused: Counter[str] = Counter()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._epoch = itertools.count()
        self._wake = NEVER

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), action))

    @property
    def over(self) -> bool:
        """Whether nothing is to come."""
        return not self._events

    def arrive(self, when: float, deadline: float | None = None) -> None:
        self.at(when, lambda: self._arrive(when + 0.7 if deadline is None else deadline))

    def run(self, until: float = 1e9) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, action = heapq.heappop(self._events)
            action()
            self._step()

    def _arrive(self, deadline: float) -> None:
        assert self.dispatcher.offer(deadline) is not None

    def _step(self) -> None:
        while True:
            self.steps += 1
            step = self.dispatcher.step(self.now)
            self.gave_up += [(self.now, t, reason) for t, reason in step.gave_up]
            for send in step.sends:
                self._send(send)
            if not step.sends:
                break
        if step.wake_at < NEVER:
            assert step.wake_at >= self.now
            due = max(step.wake_at, self.now + 1e-6)
            if not self.now < self._wake <= due:
                self._wake = due
                self.at(due, lambda: None)

    def _send(self, send: Send) -> None:
        prefill, ticket = send.prefill, send.ticket
        device = self.devices[prefill.id]
        sent = self.now
        hint = device.hint(self.now, next(self._epoch)) if self.hints else None
        if not device.accept(self.now, self.service):
            self.refused[prefill.id] += 1
            prefill.rejected(hint, self.now)
            self.dispatcher.back(ticket, self.now)
            return

        def answered() -> None:
            hint = device.hint(self.now, next(self._epoch)) if self.hints else None
            prefill.accepted(hint, self.now, sent)
            prefill.released()
            self.accepted.append((sent, ticket))

        self.at(self.now + self.service, answered)


def most(candidates: int, seconds: float) -> float:
    """Attempts that one request may cost, as the text of `pacing` says."""
    return min(2 * candidates, 8) + 4 + max(0.0, math.log(seconds / 0.04) / math.log(1.25))


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    rng = random.Random(seed)
    times, now = [], 0.0
    while (now := now + rng.expovariate(rate)) < seconds:
        times.append(now)
    return times
