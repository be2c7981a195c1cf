"""Aggregated serving in virtual time: each instance computes prompts and decodes its own streams.

Times are those of the simulator's profile, so that both kinds of serving run on the same devices.
An iteration is what an instance does at once; its law says what that is. A request goes to the
instance with the fewest requests, and ends when its first token would be late.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pdserve.ratio.profile import PerformanceProfile
from pdserve.sim.arrivals import Arrivals
from pdserve.terms import Slo


@dataclass(slots=True)
class Request:
    """One request; times are seconds."""

    arrived: float
    prompt: int
    output: int
    computed: int = 0
    """Tokens of the prompt that are computed."""
    first: float = 0.0
    last: float = 0.0
    """Of its tokens; 0: it was never answered to the end."""

    def met(self, slo: Slo) -> bool:
        """Whether it met TTFT and TPOT."""
        if self.last == 0.0:
            return False
        tpot = (self.last - self.first) / max(self.output - 1, 1)
        return self.first - self.arrived <= slo.ttft and tpot <= slo.tpot


@dataclass(slots=True)
class Instance:
    """What one instance holds."""

    waiting: deque[Request] = field(default_factory=deque)
    running: int = 0
    """Streams that decode."""
    context: int = 0
    """Tokens of their KV."""
    token: int = 0
    """Decode steps since the start."""
    ends: list[tuple[int, int, Request]] = field(default_factory=list)
    """Streams by their last step."""
    parts: list[tuple[Request, int]] = field(default_factory=list)
    """Prompts of the iteration, and how many of their tokens it computes."""
    decodes: bool = False
    """Whether the iteration makes a token of each stream."""
    busy: bool = False

    @property
    def load(self) -> int:
        """Requests that it has."""
        return len(self.waiting) + len(self.parts) + self.running


@dataclass(frozen=True, slots=True)
class World:
    """What all laws know."""

    profile: PerformanceProfile
    slo: Slo
    interference: float = 1.0
    """Factor, 1 or more, on an iteration that computes prompts and decodes at once."""

    def prompt_seconds(self, before: int, tokens: int) -> float:
        """Seconds for more tokens of a prompt of which some are computed; no batch's base."""
        p = self.profile.prefill
        square = (before + tokens) ** 2 - before**2
        return p.per_token * tokens + p.per_token_squared * square

    def prefill_seconds(self, parts: list[tuple[Request, int]]) -> float:
        """Seconds of a batch of whole prompts."""
        each = sum(self.prompt_seconds(0, tokens) for _, tokens in parts)
        return self.profile.prefill.base + each

    def step_seconds(self, inst: Instance) -> float:
        """Seconds of a decode step alone."""
        d = self.profile.decode
        return d.base + d.per_request * inst.running + d.per_context_token * inst.context

    def drop_late(self, inst: Instance, now: float) -> None:
        """End the oldest requests whose first token would be late."""
        while inst.waiting:
            head = inst.waiting[0]
            left = self.prompt_seconds(head.computed, head.prompt - head.computed)
            if now + left <= head.arrived + self.slo.ttft:
                return
            inst.waiting.popleft()


Law = Callable[[World, Instance], float]
"""Fills `parts` and `decodes` of an idle instance; the seconds of the iteration, 0: none."""


def prompts_first(world: World, inst: Instance) -> float:
    """Whole prompts as soon as they wait; streams stand still meanwhile (continuous batching)."""
    room = min(world.profile.prefill_slots, world.profile.decode_slots - inst.running)
    while inst.waiting and len(inst.parts) < room:
        req = inst.waiting.popleft()
        inst.parts.append((req, req.prompt))
    if inst.parts:
        return world.prefill_seconds(inst.parts)
    inst.decodes = inst.running > 0
    return world.step_seconds(inst) if inst.decodes else 0.0


def chunked(budget: int) -> Law:
    """Each iteration makes a token of every stream and computes prompts up to `budget` tokens.

    The prompts' tokens share the iteration's base with the streams (Sarathi-Serve).
    """

    def law(world: World, inst: Instance) -> float:
        inst.decodes = inst.running > 0
        seconds, left = (world.step_seconds(inst) if inst.decodes else 0.0), budget - inst.running
        while inst.waiting and left > 0:
            if inst.running + len(inst.parts) >= world.profile.decode_slots:
                break
            req = inst.waiting.popleft()
            tokens = min(left, req.prompt - req.computed)
            inst.parts.append((req, tokens))
            seconds += world.prompt_seconds(req.computed, tokens)
            left -= tokens
        if not inst.parts:
            return seconds
        if inst.decodes:
            return world.interference * seconds
        return seconds + world.profile.prefill.base

    return law


def static_batches(size: int) -> Law:
    """A batch is computed and decoded to the end of its longest stream before the next begins."""

    def law(world: World, inst: Instance) -> float:
        if inst.running:
            inst.decodes = True
            return world.step_seconds(inst)
        while inst.waiting and len(inst.parts) < size:
            req = inst.waiting.popleft()
            inst.parts.append((req, req.prompt))
        return world.prefill_seconds(inst.parts) if inst.parts else 0.0

    return law


class AggregatedPlant:
    """Instances of one law. Times are seconds from the start of the run."""

    def __init__(self, world: World, law: Law, instances: int) -> None:
        self._world, self._law = world, law
        self._instances = [Instance() for _ in range(instances)]
        self._events: list[tuple[float, int]] = []
        self._number = 0

    def run(self, arrivals: Arrivals) -> list[Request]:
        """All requests, served to the end."""
        rows = zip(arrivals.times.tolist(), arrivals.tokens.tolist(), strict=True)
        requests = [Request(at, prompt, output) for at, (prompt, _, output) in rows]
        for req in requests:
            self._run_until(req.arrived)
            k = min(range(len(self._instances)), key=lambda i: self._instances[i].load)
            self._instances[k].waiting.append(req)
            if not self._instances[k].busy:
                self._begin(k, req.arrived)
        self._run_until(float("inf"))
        return requests

    def _run_until(self, end: float) -> None:
        while self._events and self._events[0][0] <= end:
            now, k = heapq.heappop(self._events)
            self._finish(self._instances[k], now)
            self._begin(k, now)

    def _begin(self, k: int, now: float) -> None:
        inst = self._instances[k]
        self._world.drop_late(inst, now)
        seconds = self._law(self._world, inst)
        inst.busy = seconds > 0
        if inst.busy:
            heapq.heappush(self._events, (now + seconds, k))

    def _finish(self, inst: Instance, now: float) -> None:
        if inst.decodes:
            inst.token += 1
            inst.context += inst.running
            while inst.ends and inst.ends[0][0] <= inst.token:
                req = heapq.heappop(inst.ends)[2]
                inst.running -= 1
                inst.context -= req.prompt + req.output
                req.last = now
        parts, inst.parts, inst.decodes = inst.parts, [], False
        for req, tokens in reversed(parts):
            req.computed += tokens
            if req.computed < req.prompt:
                inst.waiting.appendleft(req)
                continue
            req.first = now
            if req.output <= 1:
                req.last = now
                continue
            self._number += 1
            inst.running += 1
            inst.context += req.prompt + 1
            heapq.heappush(inst.ends, (inst.token + req.output - 1, self._number, req))
