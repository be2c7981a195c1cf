"""Says by Events what became of a proposal of mode Approve: made, withdrawn or rejected."""

from __future__ import annotations

from pdserve.controllers.ratio.subjects import Subject
from pdserve.controllers.shared import event_reasons as reasons
from pdserve.controllers.shared.context import OperatorContext
from pdserve.ratio.types import Decision, PendingChange
from pdserve.terms.times import rfc3339


def tell(
    context: OperatorContext, subject: Subject, before: PendingChange | None, decision: Decision
) -> None:
    """Write the Events of one round; `before`: what waited before it."""
    after = decision.pending
    gone = before is not None and (after is None or after.id != before.id)
    if before is not None and gone and not before.rejected and not decision.changes:
        why = "its time is over" if decision.time >= before.expires else "it is not wanted any more"
        note = f"proposal {before.id}, {before.before} -> {before.to}, is withdrawn: {why}"
        context.events.event(subject.obj, "Normal", reasons.WITHDRAWN, note)
    if after is None:
        return
    if before is None or gone:
        where = f"{subject.service.metadata.name} {subject.scenario.name}"
        note = (
            f"proposal {after.id}, {after.before} -> {after.to}, waits until "
            f"{rfc3339(after.expires)}: kubectl pdserve approve {where}; {after.message}"
        )
        context.events.event(subject.obj, "Normal", reasons.PROPOSED, note)
    elif after.rejected and not before.rejected:
        note = f"proposal {after.id} was rejected: not made again before {rfc3339(after.expires)}"
        context.events.event(subject.obj, "Normal", reasons.REJECTED, note)
