"""Mode Approve: what the loop would do waits for a person.

1. Is what waits still true? It is withdrawn when its time is over, when the counts are others, and
   when rounds of a whole control period came to something else: one round alone says little.
2. What was answered: an approved change is applied, a rejected one is not made again for as long as
   a proposal waits.
3. What is proposed now: nothing beside what waits.

A change of any urgency waits, growth in an overload too. Without data nothing is applied, nor
withdrawn before its time. Pure; `decide` calls it, so a record replays with the person's answer.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace

from pdserve.ratio.types import Decision, DecisionInput, PendingChange, Reason
from pdserve.terms.times import rfc3339


def settled(inp: DecisionInput, decision: Decision, act: Callable[[], Decision]) -> Decision:
    """The round's decision with what waits for a person.

    Args:
        inp: of the round.
        decision: what the loop came to in mode Approve.
        act: decides the same round in mode Auto, for what that leaves in memory.
    """
    now, proposes = inp.now, decision.outcome == "Proposed"
    pending = _still(inp, decision)
    same = pending is not None and proposes and decision.to == pending.to
    seen = now if same or inp.memory.proposed_at is None else inp.memory.proposed_at
    decision = replace(decision, memory=replace(decision.memory, proposed_at=seen))
    if pending is not None and not pending.rejected:
        verdict = _verdict(inp, pending)
        if verdict == "Approve" and decision.reason is not Reason.HOLD_NO_DATA:
            return _approved(inp, pending, decision, act)
        if verdict == "Reject":
            pending = replace(pending, rejected=True, expires=math.ceil(now + inp.approval_seconds))
    if pending is not None and pending.rejected and (same or not proposes):
        return _rejected(inp, pending, decision) if same else replace(decision, pending=pending)
    if pending is not None and not pending.rejected:
        if proposes:
            decision = replace(
                decision, to=pending.to, reason=pending.reason, message=pending.message
            )
        return replace(decision, pending=pending)
    if not proposes:
        return replace(decision, memory=replace(decision.memory, proposed_at=None))
    made = _proposal(inp, decision)
    return replace(decision, pending=made, memory=replace(decision.memory, proposed_at=now))


def _still(inp: DecisionInput, decision: Decision) -> PendingChange | None:
    """What waits, unless it is withdrawn."""
    pending, now = inp.pending, inp.now
    if pending is None or now >= pending.expires or pending.before != inp.current:
        return None
    if inp.bounds.clamp(pending.to) != pending.to:
        return None
    same = decision.outcome == "Proposed" and decision.to == pending.to
    if same or pending.rejected or decision.reason is Reason.HOLD_NO_DATA:
        return pending
    seen = inp.memory.proposed_at
    lasts = seen is None or now - seen < inp.settings.control_period
    return pending if lasts else None


def _verdict(inp: DecisionInput, pending: PendingChange) -> str | None:
    answer = inp.answer
    return answer.verdict if answer is not None and answer.proposal == pending.id else None


def _approved(
    inp: DecisionInput, pending: PendingChange, decision: Decision, act: Callable[[], Decision]
) -> Decision:
    made = act()
    memory = replace(
        made.memory if made.changes and made.to == pending.to else decision.memory,
        proposed_at=None,
    )
    return Decision(
        inp.now, inp.current, pending.to, "Applied", pending.reason,
        f"approved ({pending.id}): {pending.message}", decision.inputs, decision.candidates, memory,
    )  # fmt: skip


def _rejected(inp: DecisionInput, pending: PendingChange, decision: Decision) -> Decision:
    until = rfc3339(pending.expires)
    message = f"{pending.to} was rejected and is not proposed again before {until}"
    return replace(
        decision, to=inp.current, outcome="Held", reason=Reason.REJECTED,
        message=f"{message}; {decision.message}", pending=pending,
    )  # fmt: skip


def _proposal(inp: DecisionInput, decision: Decision) -> PendingChange:
    time = math.floor(inp.now)
    text = f"{inp.service}/{inp.scenario}/{inp.now!r}/{decision.before}/{decision.to}"
    chosen = next((c for c in decision.candidates if c.counts == decision.to), None)
    return PendingChange(
        id=hashlib.sha256(text.encode()).hexdigest()[:8],
        time=float(time),
        expires=float(math.ceil(time + inp.approval_seconds)),
        before=decision.before,
        to=decision.to,
        reason=decision.reason,
        message=decision.message,
        attainment=None if chosen is None else round(chosen.attainment, 4),
    )
