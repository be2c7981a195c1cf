"""Plants whose prefills forward as P/D-Serve's paper describes: its baseline, and its own way.

arXiv 2408.08147, sections 3.5 and 4.2. Both change the naive plant of the simulator's tests, which
has the outcome of every request in common with the simulator (`tests/unit/sim/test_plant.py`).
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence

from tests.support.forwarded_plant import ForwardedPlant
from tests.support.naive_plant import ARRIVAL, EXPIRY, Inst, NaivePlant, Req

from pdserve.sim.plant import PlantSpec

Choose = Callable[[Sequence[Inst], Counter[int]], Inst]
"""The prefill for a request, of all prefills and the open streams of each by its place."""


def fewest_streams(prefills: Sequence[Inst], streams: Counter[int]) -> Inst:
    """The one with the fewest open streams, those in decode included: what a gateway counts."""
    return min(prefills, key=lambda inst: (streams[inst.place], inst.place))


def round_robin() -> Choose:
    """One after another."""
    turns = itertools.count()
    return lambda prefills, _streams: prefills[next(turns) % len(prefills)]


Ended = Callable[[Req], None]
"""Hears of a request that ended."""


def ignored(_req: Req) -> None:
    """Do nothing: no user waits for the end."""


class ClosedLoop(NaivePlant):
    """The simulator's forwarding, in a plant that tells when a request ended.

    So a user can send the next one.
    """

    def __init__(self, spec: PlantSpec, prefills: int, decodes: int) -> None:
        super().__init__(spec, cap=64)
        self.ended: Ended = ignored
        for role, count in (("prefill", prefills), ("decode", decodes)):
            for _ in range(count):
                self.create(role, 0, 0.0)

    def end(self, req: Req, outcome: str) -> None:
        """Note it, and tell."""
        super().end(req, outcome)
        self.ended(req)


class GatewayCode(ForwardedPlant):
    """The same with the gateway's own `Dispatcher` and `DecodeWalk`."""

    def __init__(self, spec: PlantSpec, prefills: int, decodes: int) -> None:
        super().__init__(spec, prefills, decodes)
        self.ended: Ended = ignored

    def end(self, req: Req, outcome: str) -> None:
        """Note it, and tell."""
        super().end(req, outcome)
        self.ended(req)


class LocalQueues(ClosedLoop):
    """Each prefill has a queue; a request stays in the one that the gateway chose at its arrival.

    A prefill takes from its queue, in order, what its slots hold. A request whose TTFT is over
    ends before it is computed, or right after; never meanwhile.
    """

    def __init__(self, spec: PlantSpec, prefills: int, decodes: int, choose: Choose) -> None:
        super().__init__(spec, prefills, decodes)
        self._choose = choose
        self._queues: dict[int, deque[Req]] = {}
        self._streams: Counter[int] = Counter()

    def arrive(self, req: Req) -> None:
        """Let it arrive at its time."""
        self.at(req.arrived, ARRIVAL, req.number, lambda: self._enqueue(req))

    def _enqueue(self, req: Req) -> None:
        prefills = [i for i in self.insts if i.role == "prefill" and i.state == "ready"]
        req.source = self._choose(prefills, self._streams)
        self._streams[req.source.place] += 1
        self._queues.setdefault(req.source.place, deque()).append(req)
        self._fill(req.source)

    def _late(self, req: Req) -> bool:
        return self.now - req.arrived > self.ttft

    def _fill(self, inst: Inst) -> None:
        queue = self._queues.get(inst.place)
        while queue and not inst.batch and inst.load < self.spec.profile.prefill_slots:
            req = queue.popleft()
            if self._late(req):
                self.end(req, "expired")
            else:
                inst.load += 1
                inst.pending.append(req)
        if inst.pending and not inst.batch:
            self.start_batch(inst)

    def end_batch(self, inst: Inst) -> None:
        """Hand over what is in time; the next batch begins."""
        batch, inst.batch = inst.batch, []
        for req in batch:
            req.computed = self.now
            if self._late(req):
                inst.load -= 1
                self.end(req, "expired")
            else:
                self.hand_over(req)
        self.touch(inst)
        self._fill(inst)

    def dispatch(self) -> None:
        """Slots may be free again."""
        for inst in self.insts:
            if inst.role == "prefill":
                self._fill(inst)

    def end(self, req: Req, outcome: str) -> None:
        """Its stream is closed."""
        assert req.source
        self._streams[req.source.place] -= 1
        super().end(req, outcome)


class PlainOnDemand(ClosedLoop):
    """On-demand forwarding as the paper has it: a prefill accepts while it has a free slot.

    It does not reckon whether it would be in time, the gateway waits until TTFT is over, and no
    decode's credit is asked for. Who of those that wait gets a free slot is chance: gateways ask
    again after pauses of their own.
    """

    def __init__(self, spec: PlantSpec, prefills: int, decodes: int) -> None:
        super().__init__(spec, prefills, decodes)
        self._chance = random.Random(0)

    def arrive(self, req: Req) -> None:
        """Let it arrive at its time."""

        def act() -> None:
            req.deadline, req.waiting = self._chance.random(), True  # what `dispatch` orders by
            self.waiting.append(req)
            self.at(self.now + self.ttft, EXPIRY, req.number, lambda: self.expire(req))
            self.dispatch()

        self.at(req.arrived, ARRIVAL, req.number, act)

    def in_time(self, inst: Inst, req: Req) -> bool:
        """It never refuses for time."""
        return True

    def is_open(self, group: int) -> bool:
        """It never waits for a decode."""
        return True
