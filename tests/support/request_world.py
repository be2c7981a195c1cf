"""Requests against instances in virtual time, without sockets: what a gateway does, in small.

`World` has one scenario's scheduler and a clock. A `Client` carries out the effects of one request
and checks on the way what must always hold:

- a leg is sent once, and ends once: by `drop`, or by its loss;
- at most one decode has the request at a time (but for pairs, whose prefill is another);
- nothing is asked of a driver after `ended`, and it comes once.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from pdserve.forwarding.deadline import PromptSize
from pdserve.forwarding.fair_turns import NO_CLIENT
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.ranking import NEVER
from pdserve.forwarding.request.effects import (
    CannotGoOnError,
    Ending,
    FlowTraits,
    Head,
    HeadKind,
    Prefilled,
    Settings,
)
from pdserve.forwarding.request.leg import Leg
from pdserve.forwarding.request.measure import Timeline
from pdserve.forwarding.request.request import Request
from pdserve.forwarding.request.scheduler import ScenarioScheduler
from pdserve.terms.failures import Failure
from pdserve.wire.hints import Hint
from pdserve.wire.routes import RouteScenario

PULLING = FlowTraits(
    together=False, prefill_samples=True, lease_seconds=30.0, computes_prompts=False,
    continues=False,
)  # fmt: skip
TOKENS = 4
SOONEST = 0.0005
"""Seconds until a timer fires at the earliest, as in the gateway."""


class Counts:
    """A `ScenarioReport` that counts."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.waiting_now = 0

    def arrived(self, tokens: float) -> None:
        self.seen["arrived"] += 1
        self.seen["arrived tokens"] += round(tokens)

    def waiting(self, requests: int) -> None:
        self.waiting_now = requests

    def finish(self, timeline: Timeline, outcome: str, now: float, scenario: RouteScenario) -> None:
        self.seen[f"finished {outcome}"] += 1

    def __getattr__(self, name: str) -> Callable[..., None]:
        def count(*what: str) -> None:
            self.seen[" ".join((name, *what))] += 1

        return count

    @property
    def ended(self) -> int:
        """Requests that were counted, offered or not."""
        offered = sum(n for what, n in self.seen.items() if what.startswith("finished"))
        return offered + self.seen["client_cancelled"]


class Clock:
    """Events in order of their time; nothing sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), action))

    def run(self, until: float = 1e9) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, action = heapq.heappop(self._events)
            action()

    def wait(self, seconds: float) -> None:
        """Let so much time pass."""
        until = self.now + seconds
        self.run(until)
        self.now = until


class Timer:
    """A scheduler's next look, as `TimedScheduler` has it."""

    def __init__(self, clock: Clock, look: Callable[[], None]) -> None:
        self._clock, self._look = clock, look
        self._wake = NEVER

    def set_due(self, due: float) -> None:
        self._wake = due
        if due < NEVER:
            self._clock.after(max(SOONEST, due - self._clock.now), lambda: self._tick(due))

    def _tick(self, due: float) -> None:
        if due == self._wake:
            self._look()


class World:
    """One gateway's view of one scenario."""

    def __init__(
        self, scenario: RouteScenario, seed: int = 1, clock: Clock | None = None,
        traits: FlowTraits = PULLING, room: int = 64,
    ) -> None:  # fmt: skip
        self.clock = clock or Clock()
        self.counts = Counts()
        self.rng = random.Random(seed)
        self.traits = traits
        self.clients: list[Client] = []
        self._room = room
        self._seen: list[Instance] = []
        """Those that were routed before."""
        self.scheduler = self.make(scenario)

    def make(self, scenario: RouteScenario) -> ScenarioScheduler:
        timer = Timer(self.clock, lambda: scheduler.tick(self.now))
        counts: Any = self.counts
        scheduler = ScenarioScheduler(
            scenario, {}, counts, self.rng.random, self._room, timer.set_due
        )
        return scheduler

    def replace(self, scenario: RouteScenario | None, traits: FlowTraits = PULLING) -> None:
        """Another scheduler has the scenario, as when an engine type is rolled out; None: none."""
        old = self.scheduler
        self._seen += old.view.instances()
        if scenario is not None:
            self.scheduler, self.traits = self.make(scenario), traits
        old.retire(self.now)

    @property
    def now(self) -> float:
        return self.clock.now

    def instance(self, name: str) -> Instance:
        return next(i for i in self.scheduler.view.instances() if i.id == name)

    def arrive(self, driver: type[Client] | None = None, **given: Any) -> Client:
        client = (driver or Client)(self, **given)
        self.clients.append(client)
        client.request.on_arrival(self.now)
        return client

    @property
    def at_rest(self) -> bool:
        """Nothing is counted at any instance, and nothing waits."""
        used = any(i.used for i in (*self.scheduler.view.instances(), *self._seen))
        return not used and not self.scheduler.dispatcher.waiting and not self.counts.waiting_now


class Client:
    """Effects of one request, noted and checked. A test plays the instances."""

    def __init__(
        self, world: World, *, stream: bool = True, size: int = 10, name: str = "",
        settings: Settings | None = None, scheduler: ScenarioScheduler | None = None,
    ) -> None:  # fmt: skip
        self.world = world
        self.log: list[str] = []
        self.ending: Ending | str = "none"
        self.live: list[Leg] = []
        self.over: set[Leg] = set()
        self.released: Counter[str] = Counter()
        self.sent_tokens = 0
        self.request = Request(
            scheduler or world.scheduler, self, world.traits, settings or Settings(),
            name or f"r{id(self)}", PromptSize(tokens=size), NO_CLIENT, Timeline(world.now, stream),
        )  # fmt: skip

    # --- effects ---

    def send(self, leg: Leg) -> None:
        self._note(f"send {leg.kind} {leg.instance.id}")
        assert leg not in self.over, "sent once"
        self.live.append(leg)
        decodes = [x for x in self.live if x.kind != "prefill"]
        assert len(decodes) <= 1, "one decode at a time"
        assert self.request.traits.together or len(self.live) == 1, "one leg at a time"
        self.sent(leg)

    def read(self, leg: Leg, silence: float) -> None:
        self._note(f"read {leg.kind}")
        assert leg in self.live
        assert silence > 0
        self.reads(leg)

    def deliver(self, leg: Leg, silence: float) -> None:
        self._note(f"deliver {leg.instance.id}")
        assert leg in self.live
        assert leg.kind != "prefill"
        self.delivers(leg)

    def drop(self, leg: Leg) -> bool:
        self._note(f"drop {leg.kind}")
        assert leg in self.live, "dropped once, and not after its loss"
        self.live.remove(leg)
        self.over.add(leg)
        self.dropped(leg)
        return True

    def release(self, prefill: Instance, name: str) -> None:
        self._note(f"release {prefill.id}")
        assert not self.released[name], "released once"
        self.released[name] += 1
        self.releases(prefill, name)

    def complete_stream(self) -> bool:
        self._note("complete stream")
        if not self.request.traits.continues:
            raise CannotGoOnError("")
        return self.sent_tokens >= TOKENS

    def go_on(self) -> int:
        self._note("go on")
        return self.sent_tokens

    def move(self) -> tuple[ScenarioScheduler, FlowTraits] | None:
        self._note("move")
        assert not self.live, "it waits for a prefill"
        scheduler = self.world.scheduler
        return None if scheduler.retired else (scheduler, self.world.traits)

    def ended(self, ending: Ending) -> None:
        assert self.ending == "none", "ended once"
        self.ending = ending
        assert not self.live, "every leg has ended"
        self.log.append(f"ended {type(ending).__name__ if ending else self.request.outcome}")

    # --- for those that play the instances ---

    def sent(self, leg: Leg) -> None: ...
    def reads(self, leg: Leg) -> None: ...
    def delivers(self, leg: Leg) -> None: ...
    def dropped(self, leg: Leg) -> None: ...
    def releases(self, prefill: Instance, name: str) -> None: ...

    # --- events ---

    @property
    def leg(self) -> Leg:
        """The leg that the driver has."""
        return self.live[-1]

    def head(
        self, kind: HeadKind = "accepted", reason: str = "", status: int = 200,
        hint: Hint | None = None, leg: Leg | None = None,
    ) -> None:  # fmt: skip
        self.request.on_head(leg or self.leg, Head(kind, reason, status, hint), self.world.now)

    def prefilled(self, leg: Leg | None = None, *, finished: bool = False) -> None:
        said = Prefilled(finished, True, None, self.request.size.tokens, 0, 1)
        self.request.on_prefilled(leg or self.leg, said, self.world.now)

    def lose(self, kind: Failure = "lost", leg: Leg | None = None) -> None:
        leg = leg or self.leg
        self.live.remove(leg)
        self.over.add(leg)
        self.request.on_lost(leg, kind, "it broke", self.world.now)

    def delivered(self, *, whole: bool = True) -> None:
        self.request.on_delivered(self.leg, self.world.now, whole=whole)

    def _note(self, what: str) -> None:
        assert self.ending == "none", f"{what} after the end"
        self.log.append(what)
