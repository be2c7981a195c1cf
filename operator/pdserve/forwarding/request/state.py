"""What the kinds of legs of one request share: its parts, its legs, and the time it gets after a
fault.

Neighbours: `request` makes one and gets the events; `prefill_legs` and the others act on it. No
choice of instances here; those are `dispatch`'s and `decode`'s.
"""

from __future__ import annotations

from typing import Protocol

from pdserve.forwarding.deadline import SAFETY, PromptSize, predict_prefill
from pdserve.forwarding.decode import DecodeWalk
from pdserve.forwarding.dispatch import Ticket
from pdserve.forwarding.fair_turns import Turn
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.request.effects import (
    ClientMistake,
    Effects,
    Ending,
    Failed,
    FlowTraits,
    Refused,
    Settings,
    Unserved,
)
from pdserve.forwarding.request.leg import Leg, LegKind
from pdserve.forwarding.request.measure import Outcome, Timeline
from pdserve.forwarding.request.scheduler import ScenarioScheduler, Waiting

MAX_FAULTS = 2
"""Instances that may fail or lose one request before the client gets 502: a request that breaks
instances must not be shown to all of them."""
GRACE_TARGETS = 10.0
"""A request that lost an instance waits for another for so many TTFT targets: late is better than
never, but a client that waits for a first token in a second has no use for one after thirty."""
GRACE_SECONDS = (5.0, 30.0)
"""At least and at most; never less than one TTFT target."""
LOST_TIME = 0.1
"""Seconds at an instance that then failed, from which on a request gets its deadline again."""
MIN_RETRY = 0.05
"""Seconds; sooner nothing can have changed."""


def grace_seconds(ttft: float) -> float:
    """How long a request that lost an instance waits for another; `ttft`: its target, seconds."""
    least, most = GRACE_SECONDS
    return max(ttft, min(most, max(least, GRACE_TARGETS * ttft)))


class FinishedPrefill:
    """What a prefill holds, a slot and KV, and the search for a decode that pulls it."""

    __slots__ = ("at", "at_fault", "kept", "lease_end", "leg", "name", "walk", "wanted_by")

    def __init__(self, leg: Leg, name: str, at: float, *, kept: bool) -> None:
        self.leg = leg
        self.name = name
        """Under which it is released."""
        self.at = at
        """When the prefill had ended, in monotonic seconds."""
        self.kept = kept
        """There is KV; a prefill may hold none."""
        self.walk: DecodeWalk | None = None
        self.wanted_by = 0.0
        """Until then a decode is of use, with this KV or another prefill's."""
        self.lease_end = 0.0
        self.at_fault = True
        """KV that cannot be pulled is the prefill's fault: no decode failed with it."""


class Driver(Effects, Protocol):
    """What a request asks of its driver."""

    def move(self) -> tuple[ScenarioScheduler, FlowTraits] | None:
        """Make the legs' bodies anew for what serves the request's model in its scenario now.

        Its own scheduler has left the routes, and no leg is out. None: nothing serves it.
        """


class _Nothing:
    """The effects of a request that has ended: none."""

    def send(self, leg: Leg) -> None: ...
    def read(self, leg: Leg, silence: float) -> None: ...
    def deliver(self, leg: Leg, silence: float) -> None: ...
    def drop(self, leg: Leg) -> bool:
        return False

    def release(self, prefill: Instance, name: str) -> None: ...
    def complete_stream(self) -> bool:
        return False

    def go_on(self) -> int:
        return 0

    def move(self) -> tuple[ScenarioScheduler, FlowTraits] | None:
        return None

    def ended(self, ending: Ending) -> None: ...


NO_EFFECTS = _Nothing()


class RequestState(Waiting):
    """State of one request, and the steps that all its legs have in common."""

    def __init__(
        self, scheduler: ScenarioScheduler, effects: Driver, traits: FlowTraits,
        settings: Settings, name: str, size: PromptSize, turn: Turn, timeline: Timeline,
    ) -> None:  # fmt: skip
        """Nothing is asked yet.

        Args:
            scheduler: of its scenario.
            effects: carries out what is decided.
            traits: of its engine type.
            settings: its bounds.
            name: prefix of the ids that engines see; unique in the service.
            size: of its prompt.
            turn: whose it is.
            timeline: its times; has its arrival.
        """
        self.scheduler = scheduler
        self.effects: Driver = effects
        self.traits, self.settings = traits, settings
        self.name, self.size, self.turn, self.timeline = name, size, turn, timeline
        self.streamed = timeline.streamed
        self.predicted = 0.0
        """Expected T_p in seconds; 0 when the route table cannot say."""
        self.ticket: Ticket | None = None
        """Its place in the waiting room."""
        self.trial = False
        """Predicted to be late and tried: engines do not get the deadline, and compute it."""
        self.late = 0
        """Prefills with room but not the time."""
        self.faults = 0
        """Faults of instances under this request, so far."""
        self.grace_until = 0.0
        """A fault gave this request its deadlines anew: until then it may wait for another
        prefill, and for a decode from then on; 0: none did."""
        self.legs: list[Leg] = []
        self.live: list[Leg] = []
        """Those that the driver has."""
        self.held: FinishedPrefill | None = None
        """To be released if no decode pulls it."""
        self.source: FinishedPrefill | None = None
        """What the present decode legs pull from, or have pulled."""
        self.failed_decodes: set[str] = set()
        """Pairs: decodes that failed this request."""
        self.pair_faults = 0
        """Pairs: `faults` when the present one was sent."""
        self.unpulled = ""
        """Pairs: why the present one's decode has no KV, a fault of either leg."""
        self.local_tried = False
        self.begun = False
        """The client has bytes."""
        self.invalid = False
        """An engine found the request itself wrong: not offered."""
        self.outcome: Outcome | None = None
        """None: not offered (invalid, or the client left in time)."""
        self.repeated = 0
        """Second prefills that were spent on it."""
        self.continued = 0
        """Decodes that were lost after the client had bytes, and replaced by another."""
        self.over = False

    # --- legs ---

    def open(self, kind: LegKind, instance: Instance, now: float) -> Leg:
        """A leg to an instance that a decision has chosen."""
        scheduler = self.scheduler
        leg = Leg(kind, instance, scheduler.report, scheduler.changed, now)
        self.legs.append(leg)
        return leg

    def send(self, leg: Leg, due: float, now: float) -> None:
        """Send a leg that must be done by `due`; both in monotonic seconds."""
        if self.over:
            leg.close(now)
            return
        if not self.trial:
            leg.deadline_ms = max(1, int((due - now) * 1000))
        self.live.append(leg)
        self.effects.send(leg)

    def drop(self, leg: Leg) -> None:
        """Nothing more is read from a leg, which has its answer."""
        self.live.remove(leg)
        self.effects.drop(leg)

    def cut(self, leg: Leg, now: float) -> None:
        """End a leg that may still run; what a prefill may hold for it is released."""
        if leg in self.live:
            self.live.remove(leg)
            if self.effects.drop(leg) and leg.kind == "prefill" and not leg.closed:
                self.effects.release(leg.instance, leg.name)
        leg.close(now)

    def release_held(self, now: float) -> None:
        """Free KV that no decode will pull."""
        held, self.held = self.held, None
        if held is not None:
            held.leg.close(now)
            if held.kept:
                self.effects.release(held.leg.instance, held.name)

    def to_room(self, now: float) -> None:
        """Wait for a prefill, again or for the first time."""
        if self.stays(now) and self.ticket is not None:
            self.scheduler.await_prefill(self.ticket, self, now)

    def stays(self, now: float) -> bool:
        """Move to the scheduler that serves the model now, if its own has left the routes.

        False: none does, and the request has ended.
        """
        if self.over or not self.scheduler.retired:
            return not self.over
        old, ticket = self.scheduler, self.ticket
        moved = None if self.begun else self.effects.move()
        if moved is None:
            self._left_behind(now)
            return False
        if ticket is not None:
            old.withdraw(ticket, self)
        self.scheduler, self.traits = moved
        tokens = self.scheduler.estimate.tokens(self.size)
        self.predict(tokens)
        deadline = self.grace_until if ticket is None else ticket.deadline
        self.ticket = self.scheduler.offer(deadline, self.size, tokens, self.turn, now)
        if self.ticket is None:
            self.no_room(self.timeline.arrived + self.scheduler.scenario.slo.ttft - now, now)
        elif ticket is not None:
            # The names of its legs count its attempts.
            self.ticket.attempts, self.ticket.first_sent = ticket.attempts, ticket.first_sent
        return not self.over

    def _left_behind(self, now: float) -> None:
        """Nothing serves its model any more, or no other engine can go on after what was sent."""
        scheduler = self.scheduler
        message = f"scenario {scheduler.scenario.name!r}: its model left the routes"
        if self.begun:
            self.fail(message, now)
            return
        scheduler.report.expired("before_prefill")
        self.outcome = "expired"
        self.end(Unserved(message), now)

    def no_room(self, left: float, now: float) -> None:
        """Too many wait already; `left`: seconds of its TTFT target."""
        scheduler = self.scheduler
        scheduler.report.expired("arrival")
        wait = scheduler.dispatcher.wait(now)
        refused = Refused(
            "waiting_room_full",
            f"scenario {scheduler.scenario.name!r}: {scheduler.dispatcher.waiting} requests wait "
            "already",
            self.retry_in(wait),
            wait + SAFETY * self.predicted,
            left,
        )
        self.refuse("expired", refused, now)

    def predict(self, tokens: float) -> None:
        """Set `predicted` for a prefill of so many tokens."""
        scheduler = self.scheduler
        predicted = predict_prefill(scheduler.scenario.prefill_seconds, tokens)
        self.predicted = min(predicted, scheduler.prefill_times.at_most(tokens))

    # --- faults ---

    @property
    def has_grace(self) -> bool:
        """Whether a fault gave this request its deadlines anew."""
        return self.grace_until > 0

    def grant_grace(self, now: float) -> None:
        """Give a request that lost time to a fault a later deadline; it keeps its turn.

        `now`: monotonic seconds.
        """
        if now > self.grace_until:
            self.grace_until = now + grace_seconds(self.scheduler.scenario.slo.ttft)
        if self.ticket is not None:
            self.ticket.deadline = max(self.ticket.deadline, self.grace_until)

    def grace_handoff(self, held_at: float) -> float:
        """The time until which a request with grace waits for a decode.

        `held_at`: when its prefill ended. Both in monotonic seconds.
        """
        slo = self.scheduler.scenario.slo
        return max(self.grace_until, held_at + slo.ttft) + slo.handoff

    def fault(self, message: str, now: float) -> bool:
        """Count an instance's fault under this request; True: it was one too many, the end."""
        self.faults += 1
        if self.faults >= MAX_FAULTS:
            self.fail(message, now)
        return self.over

    def others_first(self, prefill: Instance, now: float) -> None:
        """Ask other prefills before this one, under this request."""
        if self.ticket is not None:
            self.scheduler.dispatcher.failed(self.ticket, prefill, now)

    def repeat(self) -> bool:
        """Spend a second prefill on this request; False: there is none to spend."""
        spent = self.scheduler.budget.take()
        self.repeated += spent
        return spent

    def retry_in(self, wait: float) -> float:
        """Seconds after which the same request would be in time, if a prefill is `wait` away."""
        room = self.scheduler.scenario.slo.ttft - SAFETY * self.predicted
        return max(MIN_RETRY, wait - max(0.0, room))

    # --- the end ---

    def complete(self, outcome: Outcome, now: float, ending: Ending = None) -> None:
        """The client has its answer, or gets it now."""
        self.outcome = outcome
        self.end(ending, now)

    def fail(self, message: str, now: float) -> None:
        """Instances failed the request, and it could not be saved."""
        self.outcome = "failed"
        self.end(Failed(message), now)

    def refuse(self, outcome: Outcome, refused: Refused, now: float) -> None:
        """It cannot be served in time."""
        self.outcome = outcome
        self.end(refused, now)

    def mistaken(self, now: float) -> None:
        """An engine's 4xx: the client's mistake, in the engine's words; not offered."""
        self.invalid = True
        self.end(ClientMistake(), now)

    def end(self, ending: Ending, now: float) -> None:
        """End the request, count it, and tell the client what is left to tell.

        What it still has at instances and in the room is given back.
        """
        if self.over:
            return
        self.over = True
        if ending is not None and self.continued and self.outcome != "completed":
            # Whatever it could not be continued for, its client has half an answer.
            self.outcome, self.invalid = "failed", False
        effects, scheduler = self.effects, self.scheduler
        if self.ticket is not None:
            scheduler.withdraw(self.ticket, self)
        for leg in self.legs:
            self.cut(leg, now)
        self.release_held(now)
        self.source = None
        self._count(now)
        effects.ended(ending)
        # It refers to this object, which need not wait for the collector.
        self.effects = NO_EFFECTS

    def _count(self, now: float) -> None:
        outcome, scheduler = self.outcome, self.scheduler
        if outcome is None:
            return
        if self.repeated and outcome == "completed":
            scheduler.budget.give_back(self.repeated)
        scheduler.turns.generated(self.turn, self.timeline.generated, now)
        scheduler.report.finish(self.timeline, outcome, now, scheduler.scenario)
