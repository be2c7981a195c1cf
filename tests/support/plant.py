"""A small discrete-event plant of one scenario, for running the real `decide` in closed loop.

Virtual time, one seed. It models what the loop must cope with: open arrivals, prefill slots with a
deadline-ordered waiting room in front (on-demand forwarding seen from afar), batches, KV that
waits in its prefill slot until a decode of the same P/D group takes it, continuous batching whose
steps slow down with the batch, start delay, draining, and scraped counters. The plant has its own
profile: the policy never sees it."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import defaultdict
from collections.abc import Callable

from tests.support.plant_parts import PREFETCH, Decode, Lengths, Prefill, Rate, Request
from tests.support.plant_scrapes import Increase, request_window

from pdserve.ratio.profile import PerformanceProfile
from pdserve.ratio.types import Counts, DecodeWindow, PrefillWindow, ScenarioSample
from pdserve.terms import Slo


class Plant:
    """One scenario's gateway, prefills and decodes."""

    def __init__(
        self,
        profile: PerformanceProfile,
        slo: Slo,
        counts: Counts,
        rate: Rate,
        draw: Lengths,
        *,
        seed: int = 1,
        cold_start: float = 60.0,
        transfer: float = 0.02,
        scrape: float = 5.0,
    ) -> None:
        self.profile, self.slo, self.rate, self.draw = profile, slo, rate, draw
        self.rng = random.Random(seed)
        self.cold_start, self.transfer, self.scrape = cold_start, transfer, scrape
        self.now = 0.0
        self.counts = counts
        self.prefills: list[Prefill] = []
        self.decodes: list[Decode] = []
        self.draining = False
        self.waiting: list[Request] = []
        self.stuck: list[tuple[Prefill, Request]] = []
        self.totals: defaultdict[str, float] = defaultdict(float)
        self.scrapes: list[tuple[float, dict[str, float]]] = []
        self.device_seconds = 0.0
        self._names = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._resize(counts, ready_at=0.0)
        self._at(0.0, self._arrive)
        self._at(0.0, self._scrape)

    # --- time ---------------------------------------------------------------------------------

    def _at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), act))

    def run_until(self, end: float) -> None:
        while self._events and self._events[0][0] <= end:
            when, _, act = heapq.heappop(self._events)
            self._advance(when)
            act()
        self._advance(end)

    def _advance(self, when: float) -> None:
        self.device_seconds += (when - self.now) * (len(self.prefills) + len(self.decodes))
        self.now = when

    # --- size ---------------------------------------------------------------------------------

    def apply(self, counts: Counts) -> None:
        """Create what is missing (serving after the cold start) and drain what is too much."""
        self._resize(counts, ready_at=self.now + self.cold_start)

    def _resize(self, counts: Counts, ready_at: float) -> None:
        self.counts = counts
        pools: tuple[tuple[list, type, int], ...] = (
            (self.prefills, Prefill, counts.prefill),
            (self.decodes, Decode, counts.decode),
        )
        for pool, kind, wanted in pools:
            groups = {inst.group for inst in pool} | set(range(counts.groups))
            for group in sorted(groups):
                live = [i for i in pool if i.group == group and not i.draining]
                want = wanted if group < counts.groups else 0
                for inst in live[want:]:
                    inst.draining = self.draining = True
                for _ in range(want - len(live)):
                    pool.append(kind(f"{kind.__name__}-{next(self._names)}", group, ready_at))
        self._at(ready_at, self._dispatch)
        self._reap()

    def _reap(self) -> None:
        if not self.draining:
            return
        self.prefills = [p for p in self.prefills if not (p.draining and not p.held)]
        self.decodes = [d for d in self.decodes if not (d.draining and not d.reserved)]
        self.draining = any(p.draining for p in self.prefills)
        self.draining = self.draining or any(d.draining for d in self.decodes)

    def ready(self) -> tuple[int, int]:
        return (
            sum(p.ready_at <= self.now and not p.draining for p in self.prefills),
            sum(d.ready_at <= self.now and not d.draining for d in self.decodes),
        )

    # --- requests -------------------------------------------------------------------------------

    def _arrive(self) -> None:
        rate = self.rate(self.now)
        if rate > 0:
            request = Request(self.now, *self.draw(self.now, self.rng))
            self.waiting.append(request)
            self._at(self._deadline(request), lambda: self._expire(request))
            self._dispatch()
        gap = self.rng.expovariate(rate) if rate > 0 else 1.0
        self._at(self.now + min(gap, 5.0 if rate <= 0 else gap), self._arrive)

    def _deadline(self, request: Request) -> float:
        alone = self.profile.prefill.batch_seconds(1, request.prompt, float(request.prompt) ** 2)
        return request.arrived + max(self.slo.ttft - 1.05 * alone, 0.0)

    def _expire(self, request: Request) -> None:
        if request in self.waiting:
            self.waiting.remove(request)
            self._count(offered=1, expired=1)

    def _count(self, **amounts: float) -> None:
        for name, amount in amounts.items():
            self.totals[name] += amount

    def _credit(self, group: int) -> int:
        most = self.profile.decode_slots + PREFETCH
        return sum(
            most - d.reserved
            for d in self.decodes
            if d.group == group and d.ready_at <= self.now and not d.draining
        )

    def _dispatch(self) -> None:
        """Give waiting requests to free prefill slots of groups whose decodes have credit."""
        while self.waiting:
            free = [
                p
                for p in self.prefills
                if p.ready_at <= self.now
                and not p.draining
                and p.held < self.profile.prefill_slots
                and self._credit(p.group) > 0
            ]
            if not free:
                return
            chosen = min(free, key=lambda p: (p.busy, p.held, p.name))
            request = self.waiting.pop(0)
            chosen.held += 1
            chosen.pending.append(request)
            self._start_batch(chosen)

    def _start_batch(self, inst: Prefill) -> None:
        if inst.busy or not inst.pending:
            return
        batch, inst.pending, inst.busy = inst.pending, [], True
        tokens = sum(r.prompt for r in batch)
        squared = sum(float(r.prompt) ** 2 for r in batch)
        model = self.profile.prefill
        seconds = model.base + model.per_token * tokens + model.per_token_squared * squared

        def done() -> None:
            inst.busy = False
            self._engine(
                inst.name, batches=1, requests=len(batch), compute=seconds, tokens=tokens,
                squared=squared,
            )  # fmt: skip
            for request in batch:
                request.computed = self.now
                self._hand_over(inst, request)
            self._start_batch(inst)

        self._at(self.now + seconds, done)

    def _engine(self, name: str, **amounts: float) -> None:
        for kind, amount in amounts.items():
            self.totals[f"{kind}@{name}"] += amount

    def _hand_over(self, source: Prefill, request: Request) -> bool:
        most = self.profile.decode_slots + PREFETCH
        able = [
            d
            for d in self.decodes
            if d.group == source.group and d.ready_at <= self.now and not d.draining
            and d.reserved < most
        ]  # fmt: skip
        if not able:
            self.stuck.append((source, request))
            self._at(request.arrived + self.slo.ttft + 5.0, lambda: self._give_up(source, request))
            return False
        chosen = min(able, key=lambda d: (d.reserved, d.name))
        chosen.reserved += 1
        self._engine(
            source.name, kv_wait=self.now - request.computed, transfer=self.transfer, transfers=1
        )

        def pulled() -> None:
            request.first = self.now
            chosen.queued.append(request)
            source.held -= 1
            self._reap()
            self._admit(chosen)
            self._dispatch()

        self._at(self.now + self.transfer, pulled)
        return True

    def _give_up(self, source: Prefill, request: Request) -> None:
        if (source, request) in self.stuck:
            self.stuck.remove((source, request))
            self._engine(source.name, kv_wait=self.now - request.computed)
            source.held -= 1
            self._count(offered=1, decode_overload=1)
            self._reap()
            self._dispatch()

    # --- decode: every running stream advances at 1/step(B); only batch changes are events --------

    def _step(self, inst: Decode) -> float:
        model = self.profile.decode
        batch = len(inst.running)
        return model.base + model.per_request * batch + model.per_context_token * inst.context

    def _catch_up(self, inst: Decode) -> None:
        elapsed, batch = self.now - inst.moved_at, len(inst.running)
        if batch and elapsed > 0:
            steps = elapsed / self._step(inst)
            inst.token += steps
            self._engine(
                inst.name, steps=steps, step_seconds=elapsed, step_requests=steps * batch,
                step_context=steps * inst.context,
            )  # fmt: skip
        inst.moved_at = self.now

    def _admit(self, inst: Decode) -> None:
        self._catch_up(inst)
        while inst.queued and len(inst.running) < self.profile.decode_slots:
            request = inst.queued.pop(0)
            request.decode_from = self.now
            request.finish_at_token = inst.token + request.output - 1
            inst.running.append(request)
            inst.context += request.prompt + request.output / 2
        self._plan_finish(inst)

    def _plan_finish(self, inst: Decode) -> None:
        inst.generation += 1
        if not inst.running:
            return
        generation = inst.generation
        left = min(r.finish_at_token for r in inst.running) - inst.token
        self._at(
            self.now + max(left, 0.0) * self._step(inst), lambda: self._finish(inst, generation)
        )

    def _finish(self, inst: Decode, generation: int) -> None:
        if generation != inst.generation:
            return
        self._catch_up(inst)
        for request in [r for r in inst.running if r.finish_at_token <= inst.token + 1e-6]:
            inst.running.remove(request)
            inst.context -= request.prompt + request.output / 2
            inst.reserved -= 1
            self._complete(request)
        self._admit(inst)
        for source, request in list(self.stuck):
            if source.group == inst.group:
                self.stuck.remove((source, request))
                if not self._hand_over(source, request):
                    break
        self._reap()
        self._dispatch()

    def _complete(self, request: Request) -> None:
        per_token = (self.now - request.decode_from) / (request.output - 1)
        ttft_met = request.first - request.arrived <= self.slo.ttft
        tpot_met = per_token <= self.slo.tpot
        handoff_met = request.decode_from - request.first + per_token <= self.slo.handoff
        self._count(
            offered=1, completed=1, ttft_met=ttft_met,
            met=ttft_met and tpot_met and handoff_met, prompt=request.prompt,
            output=request.output, ttft=request.first - request.arrived,
        )  # fmt: skip

    # --- metrics ----------------------------------------------------------------------------------

    def _scrape(self) -> None:
        for inst in self.decodes:
            self._catch_up(inst)
        self.scrapes.append((self.now, dict(self.totals)))
        self._at(self.now + self.scrape, self._scrape)

    def sample(
        self, windows: tuple[float, ...] = (60.0, 180.0, 600.0), delay: float = 0.0
    ) -> ScenarioSample:
        """What Prometheus would say `delay` seconds late."""
        at = self.now - delay
        seen = [(t, totals) for t, totals in self.scrapes if t <= at]
        warm = min(windows)
        pre = [p.name for p in self.prefills if p.ready_at + warm <= self.now]
        dec = [d.name for d in self.decodes if d.ready_at + warm <= self.now]
        short = Increase(seen, at, windows[0])
        return ScenarioSample(
            at=at,
            age=at - seen[-1][0] + delay if seen else delay,
            windows=tuple(request_window(Increase(seen, at, w), w) for w in windows),
            prefill=PrefillWindow(
                len(pre), *short.over(pre, "batches", "requests", "compute", "tokens", "squared",
                "kv_wait", "transfer", "transfers"),
            ),
            decode=DecodeWindow(
                len(dec), *short.over(dec, "steps", "step_seconds", "step_requests",
                "step_context"),
            ),
            decode_overload=short["decode_overload"],
            expired=short["expired"],
            failed=0.0,
            waiting=float(len(self.waiting)),
            ttft_seconds=short["ttft"] / max(short["completed"], 1.0),
            live=1 + len(pre) + len(dec),
        )  # fmt: skip

    def attainment_since(self, since: float) -> float:
        increase = Increase(self.scrapes, self.now, self.now - since)
        return increase["met"] / max(increase["offered"], 1.0)
