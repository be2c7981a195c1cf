"""The simulated plant once more, plainly: objects, lists, and one decode step at a time.

Written from the rules of `pdserve.sim.plant`, for comparing outcomes; it shares no code with it.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from pdserve.sim.plant import PlantSpec

INSTANCE, TRANSFER, GIVE_UP, ARRIVAL, EXPIRY = range(5)
"""Order of what happens at one moment."""


@dataclass(eq=False)
class Req:
    number: int
    arrived: float
    prompt: int
    cached: int
    output: int
    deadline: float = 0.0
    computed: float = 0.0
    first: float = 0.0
    second: float = 0.0
    made: int = 1
    """Tokens made."""
    waiting: bool = False
    source: Inst | None = None
    outcome: str = ""
    ended: float = 0.0


@dataclass(eq=False)
class Inst:
    place: int
    role: str
    group: int
    state: str = "starting"
    load: int = 0
    touched: int = 0
    """When its load changed last, as a count of changes."""
    pending: list[Req] = field(default_factory=list)
    batch: list[Req] = field(default_factory=list)
    running: list[Req] = field(default_factory=list)
    """Streams of a decode; `pending` waits to join them."""
    batch_ends: float = 0.0
    hold: float = 0.0
    """Mean stay of its streams, a fifth the newest."""


class NaivePlant:
    def __init__(self, spec: PlantSpec, cap: int) -> None:
        self.spec, self.cap = spec, cap
        self.now = 0.0
        self.handoff = 0.0
        """Mean seconds from the end of a prefill to its first token, a tenth the newest."""
        self.insts: list[Inst] = []
        self.waiting: list[Req] = []
        self.aside: list[Req] = []
        """Requests that every prefill refused, until some batch ends."""
        self.stuck: list[Req] = []
        self.pulling: list[Req] = []
        self.done: list[Req] = []
        self.changes = itertools.count(1)
        self.events: list[tuple[float, int, int, int, Callable[[], None]]] = []
        self.seq = itertools.count()

    def at(self, time: float, kind: int, rank: int, act: Callable[[], None]) -> None:
        heapq.heappush(self.events, (time, kind, rank, next(self.seq), act))

    def run_until(self, end: float) -> None:
        while self.events and self.events[0][0] <= end:
            self.now, _, _, _, act = heapq.heappop(self.events)
            act()
        self.now = end

    # --- instances

    def create(self, role: str, group: int, ready_at: float) -> None:
        base = (group + (self.spec.groups if role == "decode" else 0)) * self.cap
        taken = {i.place for i in self.insts}
        place = next(p for p in range(base, base + self.cap) if p not in taken)
        inst = Inst(place, role, group)
        self.insts.append(inst)

        def ready() -> None:
            if inst.state == "starting":
                inst.state = "ready"
                self.touch(inst)
                self.serve_stuck(group)
                self.dispatch()

        self.at(ready_at, INSTANCE, place, ready)

    def drain(self, inst: Inst) -> None:
        inst.state = "draining"
        self.reap(inst)

    def reap(self, inst: Inst) -> None:
        if inst.state == "draining" and inst.load == 0 and inst in self.insts:
            self.insts.remove(inst)

    def touch(self, inst: Inst) -> None:
        inst.touched = next(self.changes)

    def free(self, role: str, group: int) -> list[Inst]:
        p = self.spec.profile
        most = p.prefill_slots if role == "prefill" else p.decode_slots + self.spec.prefetch
        return [
            i for i in self.insts
            if i.role == role and i.group == group and i.state == "ready" and i.load < most
        ]  # fmt: skip

    def is_open(self, group: int) -> bool:
        """Whether decodes have credit for more than prefills already hold for them."""
        credit = sum(self.credit(i) for i in self.free("decode", group))
        held = sum(i.load for i in self.insts if i.role == "prefill" and i.group == group)
        return credit > held - sum(r.source.group == group for r in self.pulling if r.source)

    def credit(self, inst: Inst) -> int:
        p, ahead = self.spec.profile, self.spec.prefetch
        left = p.decode_slots + ahead - inst.load
        if inst.hold:
            left -= max(ahead - int(self.spec.slo.handoff * p.decode_slots / (3 * inst.hold)), 0)
        return max(left, 0)

    # --- requests

    def arrive(self, req: Req) -> None:
        def act() -> None:
            target = self.ttft - min(self.handoff, self.ttft / 2)
            deadline = self.now + target - 1.05 * self.prefill_seconds([req])
            req.deadline = deadline
            if deadline <= self.now:
                self.end(req, "expired")
                return
            req.waiting = True
            self.waiting.append(req)
            self.at(deadline, EXPIRY, req.number, lambda: self.expire(req))
            self.dispatch()

        self.at(req.arrived, ARRIVAL, req.number, act)

    def expire(self, req: Req) -> None:
        if req.waiting:
            req.waiting = False
            (self.waiting if req in self.waiting else self.aside).remove(req)
            idle = [g for g in range(self.spec.groups) if self.free("prefill", g)]
            starved = idle and not any(self.is_open(g) for g in idle)
            self.end(req, "overload" if starved else "expired")

    def end(self, req: Req, outcome: str) -> None:
        req.outcome, req.ended = outcome, self.now
        self.done.append(req)

    def prefill_seconds(self, reqs: list[Req]) -> float:
        p = self.spec.profile.prefill
        tokens = squared = 0.0
        for r in reqs:
            left = float(r.prompt - r.cached)
            tokens += left
            squared += left * left
        return p.base + p.per_token * tokens + p.per_token_squared * squared

    def dispatch(self) -> None:
        while self.waiting:
            able = [
                p for g in range(self.spec.groups) if self.is_open(g)
                for p in self.free("prefill", g)
            ]  # fmt: skip
            if not able:
                return
            inst = min(able, key=lambda i: (i.load, i.touched))
            req = min(self.waiting, key=lambda r: (r.deadline, r.number))
            self.waiting.remove(req)
            others = [p for p in able if p.group == inst.group]
            inst = min(
                (p for p in (inst, *others) if self.in_time(p, req)),
                key=lambda p: (p is not inst, self.done_at(p, req), p.place), default=None,
            )  # type: ignore[assignment]  # None: all refuse  # fmt: skip
            if inst is None:
                self.aside.append(req)
                continue
            req.waiting, req.source = False, inst
            inst.load += 1
            inst.pending.append(req)
            self.touch(inst)
            if not inst.batch:
                self.start_batch(inst)

    @property
    def ttft(self) -> float:
        return self.spec.slo.ttft

    def in_time(self, inst: Inst, req: Req) -> bool:
        """Whether neither it nor those that wait there would be late."""
        return self.done_at(inst, req) <= min(self.due(r) for r in [*inst.pending, req])

    def due(self, req: Req) -> float:
        return req.deadline + 1.05 * self.prefill_seconds([req])

    def done_at(self, inst: Inst, req: Req) -> float:
        begins = inst.batch_ends if inst.batch else self.now
        return begins + self.prefill_seconds([*inst.pending, req])

    def start_batch(self, inst: Inst) -> None:
        inst.batch, inst.pending = inst.pending, []
        seconds = self.prefill_seconds(inst.batch)
        inst.batch_ends = self.now + seconds
        self.at(inst.batch_ends, INSTANCE, inst.place, lambda: self.end_batch(inst))

    def end_batch(self, inst: Inst) -> None:
        for req in inst.batch:
            req.computed = self.now
            if req.output > 1:
                self.hand_over(req)
            else:
                req.first = req.second = self.now
                inst.load -= 1
                self.end(req, "completed")
        inst.batch = []
        if inst.pending:
            self.start_batch(inst)
        self.touch(inst)
        self.reap(inst)
        self.waiting, self.aside = self.waiting + self.aside, []
        self.dispatch()

    def hand_over(self, req: Req) -> None:
        assert req.source
        able = self.free("decode", req.source.group)
        if not able:
            self.stuck.append(req)
            slo = self.spec.slo
            due = max(req.arrived + slo.ttft, req.computed) + slo.handoff
            self.at(due, GIVE_UP, req.number, lambda: self.give_up(req))
            return
        inst = min(able, key=lambda i: (i.load, i.touched))
        inst.load += 1
        self.pulling.append(req)
        self.touch(inst)
        seconds = self.spec.transfer + self.spec.transfer_per_token * req.prompt
        self.at(self.now + seconds, TRANSFER, req.number, lambda: self.pulled(req, inst))

    def give_up(self, req: Req) -> None:
        if req in self.stuck:
            assert req.source
            self.stuck.remove(req)
            req.source.load -= 1
            self.touch(req.source)
            self.end(req, "overload")
            self.reap(req.source)
            self.dispatch()

    def serve_stuck(self, group: int) -> None:
        for req in [r for r in self.stuck if r.source and r.source.group == group]:
            if not self.free("decode", group):
                return
            self.stuck.remove(req)
            self.hand_over(req)

    def pulled(self, req: Req, inst: Inst) -> None:
        assert req.source
        req.first = self.now
        took = self.now - req.computed
        self.handoff = self.handoff + 0.1 * (took - self.handoff) if self.handoff else took
        req.source.load -= 1
        self.pulling.remove(req)
        self.touch(req.source)
        self.reap(req.source)
        inst.pending.append(req)
        if not inst.running:
            self.join(inst)
            self.step(inst)
        self.dispatch()

    # --- decode

    def join(self, inst: Inst) -> int:
        room = self.spec.profile.decode_slots - len(inst.running)
        joining, inst.pending = inst.pending[:room], inst.pending[room:]
        inst.running += joining
        return len(joining)

    def step(self, inst: Inst) -> None:
        d = self.spec.profile.decode
        context = sum(r.prompt + r.made - 1 for r in inst.running)
        seconds = d.base + d.per_request * len(inst.running) + d.per_context_token * context
        self.at(self.now + seconds, INSTANCE, inst.place, lambda: self.end_step(inst))

    def end_step(self, inst: Inst) -> None:
        for req in inst.running:
            req.made += 1
            if req.made == 2:
                req.second = self.now
        finished = [r for r in inst.running if r.made >= r.output]
        for req in finished:
            inst.running.remove(req)
            inst.load -= 1
            self.end(req, "completed")
        if finished:
            stay = sum(self.now - r.first for r in finished) / len(finished)
            inst.hold = inst.hold + 0.2 * (stay - inst.hold) if inst.hold else stay
        joined = self.join(inst)
        if inst.running:
            self.step(inst)
        if finished or joined:
            self.touch(inst)
            self.reap(inst)
            self.serve_stuck(inst.group)
            self.dispatch()
