"""Policies that choose prefills in virtual time (`prefix_world`): the gateway's own, and others.

Each policy decides where a prompt is prefilled. `Ours` runs the gateway's own decisions, with and
without affinity, with and without reports of what the prefills' caches hold, before prefills that
refuse when they are busy; the others choose a prefill for good, where the request waits in a queue.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

from tests.support.dispatch_world import SLO
from tests.support.prefix_trace import BLOCK, Prompt, spread
from tests.support.prefix_world import SECONDS, Policy, World

from pdserve.engines.cached_digests import News
from pdserve.forwarding.deadline import PrefillTimes
from pdserve.forwarding.dispatch import Dispatcher, Send, Ticket
from pdserve.forwarding.prefix.affinity import Affinity, KnownPrompt
from pdserve.forwarding.ranking import NEVER
from pdserve.forwarding.scenario_view import View
from pdserve.wire.hints import Hint
from pdserve.wire.prefixes import PromptBlocks
from pdserve.wire.routes import RouteGroup, RouteInstance, RouteScenario

REBUILT = 0.5
"""Seconds until a gateway that starts has read a snapshot of each cache: more than is measured."""
PATIENCE = 60.0
"""Seconds until a request ends unserved; it counts with this time to its first token."""


class Ours:
    """A gateway's dispatcher with a view of its own."""

    def __init__(self, world: World, seed: int, capacity: int, *, reports: bool = False) -> None:
        """`capacity`: blocks of its prefix index; 0: no affinity. `reports`: prefills report."""
        self._world, self._seed, self._capacity = world, seed, capacity
        if reports:
            world.followers.append(self._follow)
        self._reports = reports
        self._begin()
        self._prompts: dict[Ticket, Prompt] = {}
        self._epoch = itertools.count()
        self._wake = NEVER

    def _begin(self) -> None:
        world, seed, capacity = self._world, self._seed, self._capacity
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
        if self._reports:
            self._read_snapshots()

    def restart(self) -> None:
        """Lose the index, as a gateway does that is started anew; its requests go on."""
        if self.affinity is None:
            return
        draw = random.Random(self._seed).random
        fresh = Affinity(self.view, PrefillTimes(), draw, self._capacity)
        self.affinity = self.dispatcher.affinity = fresh
        if self._reports:
            self._world.at(self._world.now + REBUILT, self._read_snapshots)

    def _read_snapshots(self) -> None:
        if self.affinity is not None:
            index = self.affinity.index
            for prefill in self.view.groups[0].prefills:
                cached = self._world.engines[self._number[prefill.id]].cached
                index.report(prefill)
                index.reported(prefill, cached.newest(index.share))

    def _follow(self, number: int, news: News) -> None:
        prefill = self.view.groups[0].prefills[number]
        if self.affinity is not None and self.affinity.index.reports(prefill):
            self.affinity.index.removed(prefill, news.gone)
            self.affinity.index.reported(prefill, news.held)

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

    def restart(self) -> None:
        raise NotImplementedError

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


def reported(world: World, seed: int) -> Policy:
    """Our order, with what prefills report of their caches."""
    return Ours(world, seed, 32_768, reports=True)


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
