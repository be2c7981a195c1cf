"""The naive plant with the gateway's own decisions: the real `Dispatcher` and `DecodeWalk`.

Instances answer at once and truthfully, with hints, as one gateway of a small service sees them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.support.naive_plant import EXPIRY, TRANSFER, Inst, NaivePlant, Req

from pdserve.forwarding.deadline import HandoffTime
from pdserve.forwarding.decode import DecodeWalk, GiveUp, Try, handoff_deadline
from pdserve.forwarding.dispatch import Dispatcher, Send, Ticket
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.ranking import NEVER
from pdserve.forwarding.scenario_view import View
from pdserve.sim.plant import PlantSpec
from pdserve.wire.hints import Hint
from pdserve.wire.routes import RouteGroup, RouteInstance, RouteScenario


class ForwardedPlant(NaivePlant):
    """Counts never change: all instances serve from the start."""

    def __init__(self, spec: PlantSpec, prefills: int, decodes: int, seed: int = 1) -> None:
        super().__init__(spec, cap=64)
        self.devices: dict[str, Inst] = {}
        p, groups = spec.profile, []
        for group in range(spec.groups):
            routes = list(self._routes("prefill", group, prefills, p.prefill_slots))
            routes += self._routes("decode", group, decodes, p.decode_slots)
            groups.append(RouteGroup(group, "r", tuple(routes)))
        self.view = View(RouteScenario("s", spec.slo, tuple(groups)), {})
        self.random = random.Random(seed).random
        self.dispatcher = Dispatcher(self.view, self.random)
        self.records = {i.id: i for i in self.view.instances()}
        for name, inst in self.devices.items():
            self.records[name].hinted(self._hint(inst), 0.0)
        self.names = {id(inst): name for name, inst in self.devices.items()}
        self.tickets: dict[int, Req] = {}
        self.sent: dict[int, float] = {}
        self.walks: dict[int, tuple[Req, DecodeWalk]] = {}
        self.taken: dict[int, tuple[Instance, float]] = {}
        self.epoch = 0
        self.handoffs = HandoffTime()
        self.wake = NEVER

    def _routes(self, role: str, group: int, count: int, slots: int) -> Iterator[RouteInstance]:
        for index in range(count):
            name = f"{role}{group}-{index}"
            inst = Inst(len(self.devices), role, group, state="ready")
            self.insts.append(inst)
            self.devices[name] = inst
            yield RouteInstance(name, role, f"http://{name}", slots)  # type: ignore[arg-type]  # a Role

    def _hint(self, inst: Inst) -> Hint:
        p, self.epoch = self.spec.profile, getattr(self, "epoch", 0) + 1
        prefill = inst.role == "prefill"
        total = p.prefill_slots if prefill else p.decode_slots + self.spec.prefetch
        free = total - inst.load
        soon = max(inst.batch_ends - self.now, 0.0) if prefill and free <= 0 else 0.0
        return Hint(free, total, soon, self.epoch)

    def record(self, inst: Inst) -> Instance:
        return self.records[self.names[id(inst)]]

    # --- prefill

    def arrive(self, req: Req) -> None:
        def act() -> None:
            target = self.ttft - min(self.handoffs.seconds, self.ttft / 2)
            req.deadline = self.now + target - 1.05 * self.prefill_seconds([req])
            if req.deadline <= self.now:
                self.end(req, "expired")
                return
            ticket = self.dispatcher.offer(req.deadline)
            assert ticket is not None
            self.tickets[id(ticket)] = req
            self.dispatch()

        self.at(req.arrived, 3, req.number, act)

    def dispatch(self) -> None:
        while True:
            step = self.dispatcher.step(self.now)
            for ticket, reason in step.gave_up:
                outcome = "overload" if reason == "no_decode" else "expired"
                self.end(self.tickets.pop(id(ticket)), outcome)
            for send in step.sends:
                self._send(send)
            if not step.sends:
                break
        due = max(step.wake_at, self.now + 1e-6)
        if step.wake_at < NEVER and not self.now < self.wake <= due:
            self.wake = due
            self.at(due, EXPIRY, 0, self.dispatch)

    def _send(self, send: Send) -> None:
        ticket: Ticket = send.ticket
        inst, req = self.devices[send.prefill.id], self.tickets[id(ticket)]
        full = inst.load >= self.spec.profile.prefill_slots
        if full or not self.in_time(inst, req):
            send.prefill.rejected(self._hint(inst), self.now)
            self.dispatcher.back(ticket, self.now)
            return
        del self.tickets[id(ticket)]
        self.sent[req.number] = self.now
        req.source = inst
        inst.load += 1
        inst.pending.append(req)
        if not inst.batch:
            self.start_batch(inst)

    # --- decode

    def hand_over(self, req: Req) -> None:
        assert req.source
        prefill = self.record(req.source)
        prefill.accepted(self._hint(req.source), self.now, self.sent[req.number])
        slo = self.spec.slo
        due = handoff_deadline(req.arrived, slo.ttft, slo.handoff, self.now)
        self.walks[req.number] = req, DecodeWalk(self.view, prefill, due, self.random)
        self._walk(req.number)

    def _walk(self, number: int) -> None:
        if number not in self.walks:
            return
        req, walk = self.walks[number]
        assert req.source
        found = walk.next(self.now)
        if isinstance(found, Try):
            inst = self.devices[found.decode.id]
            if inst.load < self.spec.profile.decode_slots + self.spec.prefetch:
                del self.walks[number]
                inst.load += 1
                seconds = self.spec.transfer + self.spec.transfer_per_token * req.prompt
                sent = self.now
                self.at(self.now + seconds, TRANSFER, number,
                        lambda: self._pulled(req, inst, found.decode, sent))  # fmt: skip
                return
            found.decode.rejected(self._hint(inst), self.now)
            self._walk(number)
        elif isinstance(found, GiveUp):
            del self.walks[number]
            req.source.load -= 1
            self.record(req.source).released()
            self.end(req, "overload")
            self.dispatch()
        else:
            self.at(max(found.until, self.now + 1e-6), 2, number, lambda: self._walk(number))

    def _pulled(self, req: Req, inst: Inst, decode: Instance, sent: float) -> None:
        assert req.source
        decode.accepted(self._hint(inst), self.now, sent)
        self.taken[req.number] = decode, self.now
        self.record(req.source).released()
        self.handoffs.learn(self.now - req.computed, self.now)
        self.pulling.append(req)
        self.pulled(req, inst)

    def end(self, req: Req, outcome: str) -> None:
        super().end(req, outcome)
        if req.number in self.taken:
            decode, since = self.taken.pop(req.number)
            decode.released(self.now, since)
            for number in list(self.walks):
                self._walk(number)
