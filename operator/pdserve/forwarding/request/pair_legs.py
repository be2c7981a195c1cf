"""Both legs of a request at once, for engines whose prefill and decode find each other themselves.

1. The scheduler chooses a prefill as ever, and a decode of its group is chosen with it.
2. Both get the request. A leg that refuses, fails or falls silent ends the attempt: the other leg
   is cut, which tells its instance, and the request goes back to the room within its deadline.
   KV that did not come is one fault of the pair, and none beside that of its prefill; other
   instances are asked first then.
3. When the prefill has answered and the decode has begun its reply, that reply is the client's.

The prefill's answer says that its KV has gone over, so its slot is free from then on. Neighbours:
`prefill_legs` reads the prefill leg, `decode_legs` delivers the reply.
"""

from __future__ import annotations

from pdserve.forwarding.decode import DecodeWalk, Try
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.request import decode_legs, prefill_legs
from pdserve.forwarding.request.effects import Head, Prefilled
from pdserve.forwarding.request.leg import Leg
from pdserve.forwarding.request.state import RequestState
from pdserve.terms.failures import Failure


def begin(r: RequestState, prefill: Instance, now: float) -> None:
    """Send a pair, or look for another prefill where its group has no decode now."""
    leg = prefill_legs.open_leg(r, prefill, now)
    walk = DecodeWalk(
        r.scheduler.view, prefill, prefill_legs.due(r), r.scheduler.random, r.failed_decodes
    )
    step = walk.next(now)
    if not isinstance(step, Try):
        leg.close(now)
        r.to_room(now)
        return
    decode = r.open("decode", step.decode, now)
    handoff = r.scheduler.scenario.slo.handoff
    leg.decode = step.decode.route
    decode.source, decode.name, decode.number = leg, leg.name, leg.number
    decode.patience = leg.patience + 4 * handoff if r.streamed else r.settings.whole_reply
    r.unpulled, r.pair_faults, r.source = "", r.faults, None
    prefill_legs.ask(r, leg, now)
    r.send(decode, prefill_legs.due(r) + handoff, now)


def on_prefill_head(r: RequestState, leg: Leg, head: Head, now: float) -> None:
    """The reply of the prefill began."""
    if prefill_legs.on_head(r, leg, head, now):
        attempt_over(r, now)


def on_prefilled(r: RequestState, leg: Leg, said: Prefilled, now: float) -> None:
    """The prefill has answered: its KV has gone over."""
    r.source = prefill_legs.take(r, leg, said, now)
    leg.close(now)
    for decode in r.live:
        if decode.answer == "accepted":
            decode_legs.deliver(r, decode, now)
            return


def on_decode_head(r: RequestState, leg: Leg, head: Head, now: float) -> None:
    """The reply of the decode began."""
    name = leg.instance.id
    if head.kind == "accepted":
        if r.source is not None:
            decode_legs.deliver(r, leg, now)
        return  # else its prefill may still refuse
    if head.kind == "client_error":
        leg.answered(now)
        r.effects.read(leg, r.settings.stream_silence)
        return
    r.drop(leg)
    if head.kind == "refused":
        leg.refused(head.hint, head.reason, now)
        attempt_over(r, now)
        return
    r.failed_decodes.add(name)
    if head.kind == "kv_failed":
        leg.answered(now)
        r.scheduler.report.rejected("decode", head.reason)
        r.unpulled = f"decode {name} could not get the KV"
    else:
        leg.failed("status", now)
        if r.fault(f"decode {name} answered {head.status}", now):
            return
    attempt_over(r, now)


def on_decode_lost(r: RequestState, leg: Leg, kind: Failure, message: str, now: float) -> None:
    """The decode broke."""
    if leg.answer:
        decode_legs.on_lost(r, leg, kind, message, now)
        return
    r.failed_decodes.add(leg.instance.id)
    leg.failed(kind, now)
    r.grant_grace(now)
    if kind == "connect" or not r.fault(f"decode {leg.instance.id}: {message}", now):
        attempt_over(r, now)


def attempt_over(r: RequestState, now: float) -> None:
    """Cut what still runs of a pair, give back what it had, and look for another."""
    prefill, decode = r.legs[-2:]
    if r.unpulled and r.faults == r.pair_faults:
        r.others_first(prefill.instance, now)
        if r.fault(r.unpulled, now):
            return
    r.cut(prefill, now)
    r.cut(decode, now)
    r.source = None
    r.to_room(now)
