"""One leg instead of two: a decode computes the prompt in the steps of what runs there.

Tried once for each request, before a prefill is asked; `forwarding.local_prefill` says whether and
where. A decode that refuses, breaks or cannot do it costs the request a moment: it goes back to the
room with its turn. A loss counts as any other fault of an instance under the request. A stream that
loses its decode later goes on by way of a prefill, as all others do.
"""

from __future__ import annotations

from pdserve.forwarding.instance import Instance
from pdserve.forwarding.local_prefill import LocalPrompt
from pdserve.forwarding.request import prefill_legs, recovery
from pdserve.forwarding.request.effects import Head
from pdserve.forwarding.request.leg import Leg
from pdserve.forwarding.request.state import LOST_TIME, RequestState
from pdserve.terms.failures import Failure


def try_once(r: RequestState, now: float) -> bool:
    """Ask a decode if that is better for this request; False: it is not, or was asked before."""
    local = r.scheduler.local
    if r.local_tried or local is None or not r.traits.computes_prompts:
        return False
    r.local_tried = True
    decode = _choose(r, now)
    if decode is None or r.ticket is None:
        return False
    r.scheduler.leave_room(r.ticket)
    leg = r.open("local", decode, now)
    leg.taken(now)  # it is not on its way from a prefill
    leg.name = f"{r.name}-local"
    leg.early_head, leg.token_ids = not r.streamed, r.streamed and r.traits.continues
    leg.patience = prefill_legs.patience(r) if r.streamed else r.settings.whole_reply
    r.send(leg, r.timeline.arrived + r.scheduler.scenario.slo.ttft, now)
    return True


def _choose(r: RequestState, now: float) -> Instance | None:
    """The decode to ask, counted as sent there."""
    scheduler, local, ticket = r.scheduler, r.scheduler.local, r.ticket
    if local is None or ticket is None or (r.turn.sheddable and scheduler.dispatcher.waiting > 1):
        return None  # others come first
    tokens = scheduler.estimate.tokens(r.size)
    cached = tokens - scheduler.to_compute(r.size, tokens)
    return local.choose(LocalPrompt(tokens, cached, ticket.prompt), ticket.deadline - now, now)


def on_head(r: RequestState, leg: Leg, head: Head, now: float) -> None:
    """A reply began."""
    scheduler, local = r.scheduler, r.scheduler.local
    if head.kind == "accepted":
        scheduler.report.local_prefill("served")
        leg.accepted(head.hint, now)
        if local is not None:
            local.accepted(leg.instance)
        r.timeline.prompt_tokens, r.timeline.cached_tokens = head.prompt_tokens, head.cached_tokens
        r.effects.deliver(leg, r.settings.stream_silence)
        return
    r.timeline.first = None
    if head.kind == "client_error":
        r.effects.read(leg, r.settings.stream_silence)
        return
    r.drop(leg)
    if head.kind == "refused":
        scheduler.report.local_prefill("refused")
        if local is not None:
            local.refused(leg.instance, now)
        leg.refused(head.hint, head.reason, now, local=True)
        r.to_room(now)
        return
    leg.untake()
    leg.failed("status", now)
    scheduler.report.local_prefill("failed")
    if not r.fault(f"decode {leg.instance.id} answered {head.status}", now):
        r.to_room(now)


def on_read(r: RequestState, leg: Leg, lacks_local: bool, now: float) -> None:
    """All of an error is there. `lacks_local`: this decode computes no prompts."""
    r.drop(leg)
    leg.answered(now)
    if not lacks_local:
        r.mistaken(now)
        return
    r.scheduler.report.local_prefill("refused")
    if r.scheduler.local is not None:
        r.scheduler.local.unable(leg.instance)
    r.to_room(now)


def on_lost(r: RequestState, leg: Leg, kind: Failure, message: str, now: float) -> None:
    """A leg broke: the request goes on as one that lost its prefill does."""
    if leg.answer == "accepted":
        learn(r, leg, now)
        recovery.broke_off(r, leg, None, kind, message, now)
        return
    r.timeline.first = None
    r.scheduler.report.local_prefill("failed")
    leg.untake()
    leg.failed(kind, now)
    if now - leg.sent_at > LOST_TIME:
        r.grant_grace(now)
    if kind == "connect" or not r.fault(f"decode {leg.instance.id}: {message}", now):
        r.to_room(now)


def learn(r: RequestState, leg: Leg, now: float) -> None:
    """Learn from what the decode said of the prompt: in its head, or in its usage."""
    line, scheduler, local = r.timeline, r.scheduler, r.scheduler.local
    if not line.prompt_tokens:
        return
    scheduler.estimate.learn(r.size, line.prompt_tokens)
    scheduler.turns.prefilled(r.turn, line.prompt_tokens - line.cached_tokens, now)
    prompt = r.ticket.prompt if r.ticket is not None else None
    if prompt is not None and local is not None:
        line.expected_cached = int(
            local.prefixes.prefilled(prompt, leg.instance, line.prompt_tokens, line.cached_tokens)
        )
