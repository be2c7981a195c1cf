"""Prefills with prefix caches in virtual time, and what becomes of a trace before them.

Neighbour: `prefix_policies` has the policies that choose among them.
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

from tests.support.prefix_trace import BLOCK, Prompt

from pdserve.engines.cached_digests import CachedDigests, News
from pdserve.wire.prefixes import PromptBlocks

SECONDS = (0.02, 0.0001)
"""A prefill and each token of it: about llama2-70b on 8 H100."""
REPORTED = 0.03
"""Seconds until a gateway has read what changed in a prefill's cache."""


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
        self.cached: CachedDigests[int] = CachedDigests()
        """What it reports: digests of gateways have the length of its own blocks here."""
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
            self.cached.removed(self.cache.popitem(last=False)[0])
        return self.busy_until, hits

    def computed(self, prompt: Prompt) -> None:
        """The prefill of a prompt ended: what of it is cached can be reported."""
        named = PromptBlocks(prompt.blocks, 1 / len(prompt.blocks))
        self.cached.computed(named, prompt.blocks, prompt.tokens, BLOCK, self.cache)


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
    begun: list[tuple[float, int, int]] = field(default_factory=list)
    """Of each prefill: when it began, blocks found, blocks."""

    @property
    def hit_rate(self) -> float:
        """Share of all blocks that were found in a cache."""
        return self.hits / self.blocks

    def hit_rate_between(self, begin: float, end: float) -> float:
        """The same of prefills that began between two times, in seconds of the trace."""
        chosen = [(hits, blocks) for at, hits, blocks in self.begun if begin <= at < end]
        return sum(h for h, _ in chosen) / sum(b for _, b in chosen)

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
        self.followers: list[Callable[[int, News], None]] = []
        """Called with an engine's number and what changed in its cache."""
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
        self.result.begun.append((self.now, hits, len(prompt.blocks)))
        if self.followers:
            self.at(end, partial(self._report, number, prompt))
        return end, hits

    def _report(self, number: int, prompt: Prompt) -> None:
        engine = self.engines[number]
        engine.computed(prompt)
        news = engine.cached.take_news()
        for follow in self.followers:
            self.at(self.now + REPORTED, partial(follow, number, news))

    def run(self) -> None:
        """Until nothing is to come."""
        while self._events:
            self.now, _, action = heapq.heappop(self._events)
            action()


class Policy(Protocol):
    """Where prompts go."""

    def offer(self, prompt: Prompt) -> None:
        """A request comes."""

    def restart(self) -> None:
        """What it knows of prefixes is lost."""

    def finish(self) -> None:
        """All requests are served."""


def play(
    trace: list[Prompt], make: Callable[[World, int], Policy], prefills: int, room: int,
    gateways: int = 1, restart_at: float | None = None,
) -> Result:  # fmt: skip
    """Run a trace.

    Args:
        trace: the requests.
        make: a gateway's policy, of the world and a seed.
        prefills: how many.
        room: blocks that a prefill's cache holds.
        gateways: how many; each request goes to any of them.
        restart_at: when all of them are started anew, in seconds; None: never.
    """
    world = World(prefills, room)
    policies = [make(world, seed) for seed in range(gateways)]
    rng = random.Random(7)
    for prompt in trace:
        policy = rng.choice(policies)
        world.at(prompt.at, partial(policy.offer, prompt))
    if restart_at is not None:
        for policy in policies:
            world.at(restart_at, policy.restart)
    world.run()
    for policy in policies:
        policy.finish()
    assert len(world.result.ttft) == len(trace)
    return world.result
