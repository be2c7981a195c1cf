"""First half of a request: the prefills that its scheduler names are asked one by one.

A refusal, a lost connection or a silent instance sends the request back to the room, within its
deadline. Neighbours: `decode_legs` goes on with the KV; `pair_legs` sends these legs with a decode
beside them.
"""

from __future__ import annotations

from pdserve.forwarding.deadline import SAFETY
from pdserve.forwarding.dispatch import GaveUp
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.request.effects import Head, Prefilled, Refused
from pdserve.forwarding.request.leg import Leg
from pdserve.forwarding.request.state import LOST_TIME, FinishedPrefill, RequestState
from pdserve.terms.failures import Failure
from pdserve.wire.calls import REJECT_DEADLINE

LATE_ANSWERS = 2
"""Prefills that may refuse one request because it cannot meet its deadline there."""


def patience(r: RequestState) -> float:
    """Seconds to wait for the head of a prefill's reply: 1 + max(3 x TTFT, 4 x T_p)."""
    return max(3 * r.scheduler.scenario.slo.ttft, 4 * r.predicted) + 1.0


def due(r: RequestState) -> float:
    """When a prefill must have ended, in monotonic seconds: its deadline plus 1.05 x T_p."""
    deadline = r.timeline.arrived if r.ticket is None else r.ticket.deadline
    return deadline + SAFETY * r.predicted


def open_leg(r: RequestState, prefill: Instance, now: float) -> Leg:
    """A leg to the prefill that the scheduler chose, to be sent by `ask`."""
    leg = r.open("prefill", prefill, now)
    attempts = 1 if r.ticket is None else r.ticket.attempts
    leg.name, leg.number = f"{r.name}-{attempts}", attempts
    leg.patience, leg.group = patience(r), r.scheduler.view.group(prefill.group)
    return leg


def ask(r: RequestState, leg: Leg, now: float) -> None:
    """Send a leg."""
    r.send(leg, due(r), now)


def on_head(r: RequestState, leg: Leg, head: Head, now: float) -> bool:
    """A reply began; True: another prefill is to be asked."""
    if head.kind != "refused":
        r.effects.read(leg, min(leg.patience, r.settings.stream_silence))
        return False
    r.drop(leg)
    leg.refused(head.hint, head.reason, now)
    if head.reason == REJECT_DEADLINE:
        _too_late_for(r, leg, now)
    return not r.over


def on_read(r: RequestState, leg: Leg, now: float) -> bool:
    """A reply that is no success is there; True: another prefill is to be asked."""
    r.drop(leg)
    if leg.answer == "client_error":
        leg.answered(now)
        r.mistaken(now)
        return False
    return _failed(r, leg, f"{leg.instance.id} answered {leg.status}", now)


def on_unreadable(r: RequestState, leg: Leg, message: str, now: float) -> bool:
    """Nothing can be made of a success; True: another prefill is to be asked."""
    r.drop(leg)
    r.effects.release(leg.instance, leg.name)
    return _failed(r, leg, f"{leg.instance.id}: {message}", now)


def on_lost(r: RequestState, leg: Leg, kind: Failure, message: str, now: float) -> bool:
    """A leg broke; True: another prefill is to be asked. What it may hold is released."""
    leg.failed(kind, now)
    if now - leg.sent_at > LOST_TIME:
        r.grant_grace(now)
    r.others_first(leg.instance, now)
    if kind == "connect":
        return True
    if r.ticket is not None:
        r.ticket.suspect = True
    r.effects.release(leg.instance, leg.name)
    return not r.fault(f"prefill {leg.instance.id}: {message}", now)


def take(r: RequestState, leg: Leg, said: Prefilled, now: float) -> FinishedPrefill:
    """A prefill has computed the KV: it is held for us until a decode pulled it."""
    r.drop(leg)
    leg.accepted(leg.hint, now)
    held = FinishedPrefill(leg, said.release_id or leg.name, now, kept=said.holds_kv)
    if r.ticket is not None:
        r.scheduler.settled(r.ticket)
    _learn(r, held, said)
    return held


def gave_up(r: RequestState, reason: GaveUp, now: float) -> None:
    """No prefill took it in time."""
    if r.has_grace:
        r.fail("an instance was lost and no other prefill took over in time", now)
        return
    scheduler = r.scheduler
    scheduler.report.expired("before_prefill")
    if reason == "no_decode":
        code, why = "decode_overload", "no group had room on its decodes"
    elif reason == "shed":
        code, why = "shed", "requests of another class fill the waiting room"
    else:
        code, why = "deadline_exceeded", "no prefill accepted in time"
    wait, ttft = scheduler.dispatcher.wait(now), scheduler.scenario.slo.ttft
    refused = Refused(
        code,
        f"scenario {scheduler.scenario.name!r}: {why} (TTFT target {ttft:g} s)",
        r.retry_in(wait),
        wait + SAFETY * r.predicted,
        r.timeline.arrived + ttft - now,
    )
    r.refuse("decode_overload" if reason == "no_decode" else "expired", refused, now)


def _too_late_for(r: RequestState, leg: Leg, now: float) -> None:
    """A prefill with room but not the time: two of them saying so is an answer."""
    r.late += 1
    if r.scheduler.try_anyway(now):
        r.trial = True
    elif r.late >= min(LATE_ANSWERS, r.scheduler.view.prefill_count):
        gave_up(r, "deadline", now)
    else:
        r.others_first(leg.instance, now)


def _failed(r: RequestState, leg: Leg, message: str, now: float) -> bool:
    leg.failed("status", now)
    r.others_first(leg.instance, now)
    return not r.fault(f"prefill failed: {message}", now)


def _learn(r: RequestState, held: FinishedPrefill, said: Prefilled) -> None:
    if r.continued:
        return  # it computed more than the prompt, and the client has its first token
    scheduler, line, leg = r.scheduler, r.timeline, held.leg
    line.prompt_tokens, line.cached_tokens = said.prompt_tokens, said.cached_tokens
    scheduler.estimate.learn(r.size, said.prompt_tokens)
    if r.ticket is not None:
        line.expected_cached = scheduler.prefilled(
            r.ticket, leg.instance, said.prompt_tokens, said.cached_tokens
        )
    computed = said.prompt_tokens - said.cached_tokens
    scheduler.turns.prefilled(r.turn, computed, held.at)
    if computed > 0:
        seconds = held.at - leg.sent_at
        scheduler.prefill_times.learn(computed, seconds)
        if scheduler.local is not None:
            scheduler.local.prefilled(computed, seconds, held.at)
    if not r.streamed and r.traits.prefill_samples:
        line.first = held.at
