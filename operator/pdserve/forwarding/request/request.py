"""Request lifecycle: admit, prefill, decode, deliver, and its end.

1. Admit: the latest time at which a prefill may accept (infeasible: refused at once).
2. Prefill (`prefill_legs`): wait in the room until a prefill has accepted and answered. In
   scenarios with `localPrefill` a decode may be asked to compute the prompt instead (`local_leg`);
   what it does not take goes to a prefill.
3. If token 1 ended the request, answer from the prefill's reply.
4. Decode (`decode_legs`): a decode of the same group pulls the KV; its reply is the client's.

An engine whose legs go out together has pairs instead of steps 2 to 4 (`pair_legs`). A fault before
the first byte to the client is repaired: another prefill, another decode, or once a new prefill
(`recovery`). A stream that lost its decode after the first byte goes on from another one where the
engine can do that. Else it ends with an error event.

Each event ends with `ScenarioScheduler.settle`, so that other requests hear of what it changed.
"""

from __future__ import annotations

from pdserve.forwarding.deadline import SAFETY
from pdserve.forwarding.dispatch import GaveUp
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.request import decode_legs, local_leg, pair_legs, prefill_legs
from pdserve.forwarding.request.effects import Bug, FirstTokenAnswer, Head, Prefilled, Refused
from pdserve.forwarding.request.leg import Leg
from pdserve.forwarding.request.state import RequestState
from pdserve.terms.failures import Failure


class Request(RequestState):
    """One request; every method is an event, with its time in monotonic seconds."""

    def on_arrival(self, now: float) -> None:
        """Admit it, and ask the first instance if one is free."""
        if self._admit(now):
            if not local_leg.try_once(self, now):
                self.to_room(now)
            self.scheduler.settle(now)

    # --- from its scheduler ---

    def on_send(self, prefill: Instance, now: float) -> None:
        """It is its turn at this prefill, which counts it as sent."""
        if self.traits.together:
            pair_legs.begin(self, prefill, now)
        else:
            prefill_legs.ask(self, prefill_legs.open_leg(self, prefill, now), now)

    def on_gave_up(self, reason: GaveUp, now: float) -> None:
        """No prefill took it in time."""
        prefill_legs.gave_up(self, reason, now)

    def on_change(self, now: float) -> None:
        """A decode may be free now."""
        decode_legs.walk_on(self, now)

    def on_retired(self, now: float) -> None:
        """Its scheduler has left the routes while it waited for a prefill."""
        self.to_room(now)
        self.scheduler.settle(now)

    def on_bug(self, error: Exception, now: float) -> None:
        """Something of ours raised: it costs this request and no other."""
        if not self.over:
            self.outcome = "failed"
            self.end(Bug(error), now)
            self.scheduler.settle(now)

    # --- from its legs ---

    def on_head(self, leg: Leg, head: Head, now: float) -> None:
        """The reply of a leg began."""
        if leg not in self.live:
            return
        leg.answer, leg.status, leg.hint = head.kind, head.status, head.hint
        if leg.kind == "local":
            local_leg.on_head(self, leg, head, now)
        elif self.traits.together:
            if leg.kind == "prefill":
                pair_legs.on_prefill_head(self, leg, head, now)
            else:
                pair_legs.on_decode_head(self, leg, head, now)
        elif leg.kind == "decode":
            decode_legs.on_head(self, leg, head, now)
        elif prefill_legs.on_head(self, leg, head, now):
            self.to_room(now)
        self.scheduler.settle(now)

    def on_interim(self, leg: Leg, now: float) -> None:
        """An early head: the KV is at this decode and nowhere else, or it has token 1."""
        if not leg.early_head or leg not in self.live:
            return
        if leg.kind == "local":
            self.timeline.first = now
            return
        decode_legs.taken(self, leg, now)
        self.held = None
        self.scheduler.settle(now)

    def on_overdue(self, leg: Leg, now: float) -> None:
        """A decode has neither refused nor sent a head within the handoff target: it pulls."""
        if not leg.answer and leg in self.live:
            decode_legs.taken(self, leg, now)
            self.scheduler.settle(now)

    def on_prefilled(self, leg: Leg, said: Prefilled, now: float) -> None:
        """The reply of an accepted prefill leg is there, and makes sense."""
        if leg not in self.live:
            return
        if self.traits.together:
            pair_legs.on_prefilled(self, leg, said, now)
        else:
            held = prefill_legs.take(self, leg, said, now)
            if said.finished:
                self.held = held
                self.timeline.last = now
                if self.timeline.first is None:
                    self.timeline.first = now
                self.timeline.output_tokens = said.completion_tokens
                self.complete("completed", now, FirstTokenAnswer())
            else:
                decode_legs.begin(self, held, now)
        self.scheduler.settle(now)

    def on_unreadable(self, leg: Leg, message: str, now: float) -> None:
        """The reply of an accepted prefill leg is there, and makes no sense."""
        if leg in self.live:
            self._prefill_again(prefill_legs.on_unreadable(self, leg, message, now), now)

    def on_read(self, leg: Leg, now: float, *, lacks_local: bool = False) -> None:
        """All of an error is there; `lacks_local`: a decode says that it computes no prompts."""
        if leg not in self.live:
            return
        if leg.kind == "prefill":
            self._prefill_again(prefill_legs.on_read(self, leg, now), now)
            return
        if leg.kind == "local":
            local_leg.on_read(self, leg, lacks_local, now)
        else:
            self.drop(leg)
            self.mistaken(now)
        self.scheduler.settle(now)

    def on_lost(self, leg: Leg, kind: Failure, message: str, now: float) -> None:
        """A leg broke: there is no connection, or no head, or not all of a reply."""
        if leg not in self.live:
            return
        self.live.remove(leg)
        if leg.kind == "prefill":
            self._prefill_again(prefill_legs.on_lost(self, leg, kind, message, now), now)
            return
        if leg.kind == "local":
            local_leg.on_lost(self, leg, kind, message, now)
        elif self.traits.together:
            pair_legs.on_decode_lost(self, leg, kind, message, now)
        else:
            decode_legs.on_lost(self, leg, kind, message, now)
        self.scheduler.settle(now)

    def on_delivered(self, leg: Leg, now: float, *, whole: bool) -> None:
        """The client has the reply; not `whole`: the instance ended it with an error event."""
        if leg not in self.live:
            return
        self.drop(leg)
        leg.close(now)
        if leg.kind == "local":
            local_leg.learn(self, leg, now)
        self.complete("completed" if whole else "failed", now)
        self.scheduler.settle(now)

    # --- from its client ---

    def on_begun(self) -> None:
        """The client has bytes."""
        self.begun = True

    def on_client_gone(self, now: float) -> None:
        """The client closed its connection: in time (not offered), or after a missed target."""
        if self.over:
            return
        if self.outcome is None and not self.invalid:
            shown = now if self.timeline.first is None else self.timeline.first
            if shown - self.timeline.arrived > self.scheduler.scenario.slo.ttft:
                self.outcome = "cancelled_late"
            else:
                self.scheduler.report.client_cancelled()
        self.end(None, now)
        self.scheduler.settle(now)

    # --- internals ---

    def _prefill_again(self, again: bool, now: float) -> None:
        if again and self.traits.together:
            pair_legs.attempt_over(self, now)
        elif again:
            self.to_room(now)
        self.scheduler.settle(now)

    def _admit(self, now: float) -> bool:
        """Give it a place in the room; False: it was refused."""
        scheduler, scenario, line = self.scheduler, self.scheduler.scenario, self.timeline
        whole = tokens = scheduler.estimate.tokens(self.size)
        scheduler.budget.earn()
        target = scenario.slo.ttft
        if self.streamed:
            target -= min(scheduler.handoff.seconds, target / 2)
        left = line.arrived + target - now
        self.predict(tokens)
        if SAFETY * self.predicted >= left:
            # What a prefill has in its cache it need not compute.
            tokens = scheduler.to_compute(self.size, tokens)
            self.predict(tokens)
        if SAFETY * self.predicted >= left:
            if scheduler.prefill_times.too_long(tokens, left) and not scheduler.try_anyway(now):
                self._infeasible(tokens, target, left, now)
                return False
            # Nothing like it was measured, or not of late: its prefill tells.
            self.trial, self.predicted = True, 0.0
        scheduler.report.arrived(whole)
        deadline = line.arrived + target - SAFETY * self.predicted
        self.ticket = scheduler.offer(deadline, self.size, whole, self.turn, now)
        if self.ticket is None:
            self.no_room(left, now)
        return self.ticket is not None

    def _infeasible(self, tokens: float, target: float, left: float, now: float) -> None:
        scheduler = self.scheduler
        scheduler.report.expired("arrival")
        scheduler.report.infeasible()
        refused = Refused(
            "deadline_infeasible",
            f"scenario {scheduler.scenario.name!r}: prefill of about {tokens:.0f} tokens takes "
            f"about {self.predicted:.2f} s, more than the TTFT target of {target:g} s",
            scheduler.next_trial - now,
            SAFETY * self.predicted,
            left,
        )
        self.refuse("expired", refused, now)
