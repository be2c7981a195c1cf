"""Prefills with prefix caches in virtual time, and the policies that choose among them.

Each policy decides where a prompt is prefilled. `Ours` runs the gateway's own decisions, with and
without affinity, before prefills that refuse when they are busy; the others choose a prefill for
good, where the request waits in a queue.
"""

from __future__ import annotations

import heapq
import itertools
import random
from array import array
from collections import OrderedDict
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from functools import partial
from statistics import mean, quantiles
from typing import Protocol

from tests.support.dispatch_world import SLO
from tests.support.prefix_trace import BLOCK, Prompt, spread

from pdserve.forwarding.deadline import PrefillTimes
from pdserve.forwarding.dispatch import Dispatcher, Send, Ticket
from pdserve.forwarding.prefix.affinity import Affinity, KnownPrompt
from pdserve.forwarding.ranking import NEVER
from pdserve.forwarding.scenario_view import View
from pdserve.wire.hints import Hint
from pdserve.wire.prefixes import PromptBlocks
from pdserve.wire.routes import RouteGroup, RouteInstance, RouteScenario

SECONDS = (0.02, 0.0001)
"""A prefill and each token of it: about llama2-70b on 8 H100."""
PATIENCE = 60.0
"""Seconds until a request ends unserved; it counts with this time to its first token."""


def ideal_hits(trace: list[Prompt], room: int = 1 << 40) -> float:
    """Share of all blocks that one cache for all prefills would find; `room`: its blocks."""
    engine, found = Engine(room), 0
    for prompt in trace:
        found += engine.begin(prompt, prompt.at)[1]
    return found / sum(len(p.blocks) for p in trace)


def _leading(blocks: array[int], known: Container[int]) -> int:
    return next((i for i, b in enumerate(blocks) if b not in known), len(blocks))


class Engine:
    """One prefill: one slot, a prefix cache of some blocks, the least recently used given up."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.cache: OrderedDict[int, None] = OrderedDict()
        self.busy_until = 0.0

    def hits(self, prompt: Prompt) -> int:
        """Leading blocks in the cache; never all, so that there are logits."""
        return min(_leading(prompt.blocks, self.cache), len(prompt.blocks) - 1)

    def seconds(self, prompt: Prompt) -> float:
        """What a prompt takes now."""
        return SECONDS[0] + SECONDS[1] * BLOCK * (len(prompt.blocks) - self.hits(prompt))

    def begin(self, prompt: Prompt, now: float) -> tuple[float, int]:
        """Compute a prompt from `now` on: when it ends, and how many blocks were in the cache."""
        hits = self.hits(prompt)
        self.busy_until = now + self.seconds(prompt)
        for block in reversed(prompt.blocks[: self.room]):
            self.cache[block] = None
            self.cache.move_to_end(block)
        while len(self.cache) > self.room:
            self.cache.popitem(last=False)
        return self.busy_until, hits


@dataclass
class Result:
    """What became of a trace."""

    ttft: list[float] = field(default_factory=list)
    """Seconds from arrival to the end of the prefill."""
    hits: int = 0
    """Blocks found in caches."""
    blocks: int = 0
    size: int = 0
    """Blocks in the gateways' indexes at the end."""

    @property
    def hit_rate(self) -> float:
        """Share of all blocks that were found in a cache."""
        return self.hits / self.blocks

    @property
    def mean_ttft(self) -> float:
        """Seconds."""
        return mean(self.ttft)

    @property
    def p90_ttft(self) -> float:
        """Seconds."""
        return quantiles(self.ttft, n=10)[-1]

    def within(self, target: float) -> float:
        """Share of requests with a TTFT of at most `target` seconds."""
        return sum(t <= target for t in self.ttft) / len(self.ttft)


class World:
    """Events in order of their time; nothing sleeps."""

    def __init__(self, prefills: int, room: int) -> None:
        self.now = 0.0
        self.engines = [Engine(room) for _ in range(prefills)]
        self.result = Result()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do something at `when`."""
        heapq.heappush(self._events, (when, next(self._order), action))

    def begin(self, number: int, prompt: Prompt) -> tuple[float, int]:
        """Prefill a prompt at an engine from now on; see `Engine.begin`."""
        end, hits = self.engines[number].begin(prompt, self.now)
        self.result.hits += hits
        self.result.blocks += len(prompt.blocks)
        self.result.ttft.append(end - prompt.at)
        return end, hits

    def run(self) -> None:
        """Until nothing is to come."""
        while self._events:
            self.now, _, action = heapq.heappop(self._events)
            action()


class Policy(Protocol):
    """Where prompts go."""

    def offer(self, prompt: Prompt) -> None:
        """A request comes."""

    def finish(self) -> None:
        """All requests are served."""


class Ours:
    """A gateway's dispatcher with a view of its own."""

    def __init__(self, world: World, seed: int, capacity: int) -> None:
        """`capacity`: blocks of its prefix index; 0: no affinity."""
        self._world = world
        count = len(world.engines)
        made = [RouteInstance(f"p{i}", "prefill", f"http://p{i}", 1) for i in range(count)]
        group = RouteGroup(
            0, "r", (*made, RouteInstance("d", "decode", "http://d", 1 << 20))
        )  # fmt: skip
        self.view = View(RouteScenario("s", SLO, (group,), prefill_seconds=SECONDS), {})
        draw = random.Random(seed).random
        self.affinity = Affinity(self.view, PrefillTimes(), draw, capacity) if capacity else None
        self.dispatcher = Dispatcher(self.view, draw, 1 << 20, self.affinity)
        self._number = {p.id: n for n, p in enumerate(self.view.groups[0].prefills)}
        self._prompts: dict[Ticket, Prompt] = {}
        self._epoch = itertools.count()
        self._wake = NEVER

    def offer(self, prompt: Prompt) -> None:
        blocks = PromptBlocks(prompt.blocks, 1 / len(prompt.blocks))
        known = KnownPrompt(blocks, prompt.tokens)
        ticket = self.dispatcher.offer(self._world.now + PATIENCE, known)
        assert ticket is not None
        self._prompts[ticket] = prompt
        self._step()

    def finish(self) -> None:
        self._world.result.size += self.affinity.index.size if self.affinity else 0

    def _step(self) -> None:
        now = self._world.now
        step = self.dispatcher.step(now)
        self._world.result.ttft += [PATIENCE] * len(step.gave_up)
        for send in step.sends:
            self._send(send, now)
        if step.wake_at < NEVER:
            due = max(step.wake_at, now + 1e-6)
            if not now < self._wake <= due:
                self._wake = due
                self._world.at(due, self._step)

    def _send(self, send: Send, sent: float) -> None:
        ticket, prefill = send
        prompt = self._prompts[ticket]
        engine = self._world.engines[self._number[prefill.id]]
        if engine.busy_until > sent:
            left = engine.busy_until - sent
            prefill.rejected(Hint(0, 1, left, next(self._epoch)), sent)
            self.dispatcher.back(ticket, sent)
            self._world.at(sent, self._step)
            return
        end, hits = self._world.begin(self._number[prefill.id], prompt)

        def ended() -> None:
            prefill.accepted(Hint(0, 1, 0.0, next(self._epoch)), self._world.now, sent)
            if self.affinity is not None and ticket.prompt is not None:
                cached = hits * BLOCK
                self.affinity.prefilled(ticket.prompt, prefill, prompt.tokens, cached)
            prefill.released()
            self._step()

        self._world.at(end, ended)


class Queued:
    """Chooses a prefill for good; requests wait there in order of arrival."""

    def __init__(self, world: World, choose: Callable[[Prompt], int]) -> None:
        self._world, self._choose = world, choose
        self._queues: list[list[Prompt]] = [[] for _ in world.engines]

    def offer(self, prompt: Prompt) -> None:
        number = self._choose(prompt)
        self._queues[number].append(prompt)
        self._next(number)

    def finish(self) -> None:
        assert not any(self._queues)

    def ends(self, number: int, prompt: Prompt) -> float:
        """When a prompt would end at a prefill, behind what is there, by what its cache has now."""
        engine = self._world.engines[number]
        work = sum(engine.seconds(p) for p in self._queues[number])
        return max(engine.busy_until, self._world.now) + work + engine.seconds(prompt)

    def _next(self, number: int) -> None:
        if self._queues[number] and self._world.engines[number].busy_until <= self._world.now:
            end, _ = self._world.begin(number, self._queues[number].pop(0))
            self._world.at(end, lambda: self._next(number))


def play(
    trace: list[Prompt], make: Callable[[World, int], Policy], prefills: int, room: int,
    gateways: int = 1,
) -> Result:  # fmt: skip
    """Run a trace; `room`: blocks that a prefill's cache holds; `make` gets world and a seed."""
    world = World(prefills, room)
    policies = [make(world, seed) for seed in range(gateways)]
    rng = random.Random(7)
    for prompt in trace:
        policy = rng.choice(policies)
        world.at(prompt.at, partial(policy.offer, prompt))
    world.run()
    for policy in policies:
        policy.finish()
    assert len(world.result.ttft) == len(trace)
    return world.result


def least_work(world: World, seed: int) -> Policy:
    """The prefill where it ends first, for good: as Dynamo's router with exact events of engines.

    It knows what every cache has and what every queued prompt will take.
    """
    rng = random.Random(seed)
    policy: Queued = Queued(
        world,
        lambda prompt: min(
            range(len(world.engines)), key=lambda n: (policy.ends(n, prompt), rng.random())
        ),
    )
    return policy


def affine(world: World, seed: int) -> Policy:
    """Our order, with prefixes."""
    return Ours(world, seed, 32_768)


def usual(world: World, seed: int) -> Policy:
    """Our order, without prefixes."""
    return Ours(world, seed, 0)


def at_random(world: World, seed: int) -> Policy:
    """Any prefill."""
    rng = random.Random(seed)
    return Queued(world, lambda _: rng.randrange(len(world.engines)))


def in_turn(world: World, seed: int) -> Policy:
    """Each prefill in its turn."""
    turn = itertools.count(seed)
    return Queued(world, lambda _: next(turn) % len(world.engines))


def by_session(world: World, seed: int) -> Policy:
    """Each session at one prefill, by a hash."""
    return Queued(world, lambda p: spread(p.session + 1) % len(world.engines))
