"""Second half of a request: a decode of the prefill's group pulls the KV and generates.

Refusals and losses before the first byte go to the next decode while the prefill still holds the
KV; when that is of no use any more, `recovery` may ask a new prefill.
"""

from __future__ import annotations

from pdserve.forwarding.decode import LEASE_MARGIN, DecodeWalk, GiveUp, Wait, handoff_deadline
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.request import recovery
from pdserve.forwarding.request.effects import Head, Refused
from pdserve.forwarding.request.leg import Leg
from pdserve.forwarding.request.state import MIN_RETRY, FinishedPrefill, RequestState
from pdserve.terms.failures import Failure

SILENCE = 2.0
"""Least seconds without a reply's head after which a streaming decode is taken for dead."""


def begin(r: RequestState, held: FinishedPrefill, now: float) -> None:
    """Look for a decode that pulls what a prefill holds."""
    slo = r.scheduler.scenario.slo
    r.held = r.source = held
    held.wanted_by = handoff_deadline(r.timeline.arrived, slo.ttft, slo.handoff, held.at)
    if r.has_grace:
        held.wanted_by = r.grace_handoff(held.at)
    held.lease_end = held.at + r.traits.lease_seconds - LEASE_MARGIN
    deadline = min(held.wanted_by, held.lease_end)
    view, leg = r.scheduler.view, held.leg
    held.walk = DecodeWalk(view, leg.instance, deadline, r.scheduler.random, group=leg.group)
    walk_on(r, now)


def walk_on(r: RequestState, now: float) -> None:
    """Ask the next decode, wait for one, or give up."""
    source = r.source
    if source is None or source.walk is None:
        return
    step = source.walk.next(now)
    if isinstance(step, GiveUp):
        _gave_up(r, source, step, now)
    elif isinstance(step, Wait):
        r.scheduler.await_decode(r, step.until)
    else:
        _ask(r, source.walk, source, step.decode, now)


def _ask(
    r: RequestState, walk: DecodeWalk, source: FinishedPrefill, decode: Instance, now: float
) -> None:
    leg, handoff = r.open("decode", decode, now), r.scheduler.scenario.slo.handoff
    leg.source, leg.name, leg.number = source.leg, source.name, walk.attempts
    leg.patience = max(SILENCE, 4 * handoff) if r.streamed else r.settings.whole_reply
    leg.overdue_at = now + handoff
    leg.early_head, leg.token_ids = not r.streamed, r.streamed and r.traits.continues
    r.send(leg, walk.deadline, now)


def on_head(r: RequestState, leg: Leg, head: Head, now: float) -> None:
    """A reply began."""
    if head.kind == "accepted":
        deliver(r, leg, now)
        return
    if head.kind == "client_error":
        leg.answered(now)
        r.effects.read(leg, r.settings.stream_silence)
        return
    r.drop(leg)
    if head.kind == "refused":
        leg.refused(head.hint, head.reason, now)
        walk_on(r, now)
        return
    if r.source is not None and r.source.walk is not None:
        r.source.walk.kv_failed()
    if head.kind == "kv_failed":
        leg.answered(now)
        r.scheduler.report.rejected("decode", head.reason)
    else:
        leg.failed("status", now)
        if r.fault(f"decode {leg.instance.id} answered {head.status}", now):
            return
    walk_on(r, now)


def deliver(r: RequestState, leg: Leg, now: float) -> None:
    """Pass an accepted leg's reply on to the client."""
    leg.accepted(leg.hint, now)
    source = r.source
    r.held = None
    if source is not None:
        source.leg.close(now)
        if r.streamed:
            r.scheduler.handoff.learn(now - source.at, now)
    r.effects.deliver(leg, r.settings.stream_silence)


def taken(r: RequestState, leg: Leg, now: float) -> None:
    """A decode is taken to have pulled the KV, or has said so.

    A reply that is not streamed would else seem to hold the prefill's slot until its end.
    """
    leg.taken(now)
    if r.source is not None:
        r.source.leg.close(now)


def on_lost(r: RequestState, leg: Leg, kind: Failure, message: str, now: float) -> None:
    """A leg broke: the request waits for another decode as one that lost its prefill does."""
    if leg.answer == "accepted":
        recovery.broke_off(r, leg, r.source, kind, message, now)
        return
    message = f"decode {leg.instance.id}: {message}"
    if leg.answer:  # in the middle of an error, which is counted already
        r.fail(message, now)
        return
    leg.failed(kind, now)
    source = r.source
    if source is None or source.walk is None:
        return
    if r.held is None:
        r.effects.release(source.leg.instance, source.name)
    if kind != "connect":
        source.at_fault = False
        source.walk.kv_failed()  # it may have pulled the KV before it died
        if r.fault(message, now):
            return
    if r.held is None:
        recovery.kv_lost(r, message, None, now)
        return
    r.grant_grace(now)
    source.wanted_by = r.grace_handoff(source.at)
    source.walk.deadline = min(source.wanted_by, source.lease_end)
    walk_on(r, now)


def _gave_up(r: RequestState, source: FinishedPrefill, step: GiveUp, now: float) -> None:
    prefill = source.leg.instance
    if step.reason == "kv_lost":
        message = f"no decode could pull the KV from {prefill.id}"
        recovery.kv_lost(r, message, prefill if source.at_fault else None, now)
    elif step.reason == "no_decode":
        recovery.kv_lost(r, f"no decode of group {prefill.group} is left", None, now)
    elif now < source.wanted_by and not r.repeated:
        message = f"no decode of group {prefill.group} had room before the KV's lease ended"
        recovery.kv_lost(r, message, None, now)
    else:
        _overloaded(r, prefill, now)


def _overloaded(r: RequestState, prefill: Instance, now: float) -> None:
    scheduler, slo = r.scheduler, r.scheduler.scenario.slo
    scheduler.report.expired("after_prefill")
    group = scheduler.view.group(prefill.group)
    free = min((d.expected_free(now) for d in group.decodes), default=now) if group else now
    refused = Refused(
        "decode_overload",
        f"scenario {scheduler.scenario.name!r}: no decode of group {prefill.group} "
        "had room in time",
        max(MIN_RETRY, free - now),
        free - now,
        r.timeline.arrived + slo.ttft + slo.handoff - now,
    )
    r.refuse("decode_overload", refused, now)
