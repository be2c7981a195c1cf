"""What a request may still cost whose KV or stream was lost: one new prefill, within the budget.

It gets its deadlines again, as if it had just arrived: it missed its target through no fault of its
own, and a late answer is better than none. A stream goes on after what its client has, where the
engine can do that; each of its losses may cost a prefill.
"""

from __future__ import annotations

from pdserve.forwarding.instance import Instance
from pdserve.forwarding.request.effects import CannotGoOnError
from pdserve.forwarding.request.leg import Leg
from pdserve.forwarding.request.state import FinishedPrefill, RequestState
from pdserve.terms.failures import Failure


def kv_lost(r: RequestState, message: str, prefill: Instance | None, now: float) -> None:
    """The prefill's work is of no use before the client got a byte; only a new prefill helps.

    `prefill`: the one that lost it, if it was a prefill's fault.
    """
    r.release_held(now)
    if not r.stays(now):
        return
    if r.repeated > r.continued or not r.repeat():
        r.fail(message, now)
        return
    r.grant_grace(now)
    if prefill is not None:
        r.others_first(prefill, now)
    _again(r, now)


def broke_off(
    r: RequestState,
    leg: Leg,
    pulled_from: FinishedPrefill | None,
    kind: Failure,
    message: str,
    now: float,
) -> None:
    """A reply broke off that is the client's.

    `pulled_from`: whose KV the decode had; it broke off, maybe before it had pulled all of it.
    """
    leg.failed(kind, now)
    if pulled_from is not None:
        r.effects.release(pulled_from.leg.instance, pulled_from.name)
    message = f"decode {leg.instance.id}: {message}"
    if r.begun:
        _stream_lost(r, message, now)
    elif not r.fault(message, now):
        kv_lost(r, message, None, now)


def _stream_lost(r: RequestState, message: str, now: float) -> None:
    """Write the end of a stream whose client has all tokens, or go on from another decode."""
    if not r.traits.continues:
        r.fail(message, now)
        return
    try:
        if r.effects.complete_stream():
            r.complete("completed", now)
            return
        if r.fault(message, now):
            return
        if not r.repeat():
            r.fail(message, now)
            return
        sent = r.effects.go_on()
    except CannotGoOnError as error:
        r.fail(f"{message}; {error}" if str(error) else message, now)
        return
    r.continued += 1
    r.predict(r.timeline.prompt_tokens + sent)
    r.grace_until = 0.0  # a fault of before has nothing to do with this one
    r.grant_grace(now)
    r.scheduler.report.continued()
    _again(r, now)


def _again(r: RequestState, now: float) -> None:
    if r.ticket is not None:
        r.scheduler.dispatcher.lost_decode(r.ticket, now)
    r.to_room(now)
