"""What waits for a person, between the API's words and the ratio loop's values. Pure."""

from __future__ import annotations

from pdserve.api import ProposalStatus, Scenario, ScenarioGroup
from pdserve.ratio.types import Counts, CountsHold, PendingChange, ProposalAnswer, Reason
from pdserve.terms.json import JsonObject
from pdserve.terms.times import epoch_of, rfc3339

APPROVAL_SECONDS = 900.0
"""How long a proposal waits where the PDService does not say."""


def pending_of(group: ScenarioGroup) -> PendingChange | None:
    """What waits, as status has it; None where there is nothing, or nothing that can be read."""
    found = group.status.proposal
    if found is None or found.reason not in list(Reason):
        return None
    try:
        made, expires = epoch_of(found.time), epoch_of(found.expires)
    except ValueError:
        return None
    percent = found.attainment_percent
    return PendingChange(
        id=found.id,
        time=made,
        expires=expires,
        before=Counts(found.from_.groups, found.from_.prefill, found.from_.decode),
        to=Counts(found.to.groups, found.to.prefill, found.to.decode),
        reason=Reason(found.reason),
        message=found.message,
        attainment=None if percent is None else round(percent / 100, 4),
        rejected=found.rejected,
    )


def proposal_status(pending: PendingChange | None) -> JsonObject | None:
    """The same as status has it."""
    if pending is None:
        return None
    before, to = pending.before, pending.to
    percent = None if pending.attainment is None else round(100 * pending.attainment, 2)
    return ProposalStatus.parse(
        {
            "id": pending.id,
            "time": rfc3339(pending.time),
            "expires": rfc3339(pending.expires),
            "from": {"groups": before.groups, "prefill": before.prefill, "decode": before.decode},
            "to": {"groups": to.groups, "prefill": to.prefill, "decode": to.decode},
            "reason": str(pending.reason),
            "message": pending.message,
            "attainmentPercent": percent,
            "rejected": pending.rejected,
        }
    ).to_dict()


def answer_of(scenario: Scenario) -> ProposalAnswer | None:
    """A person's last answer."""
    answer = scenario.ratio.answer
    return None if answer is None else ProposalAnswer(answer.proposal, answer.verdict)


def approval_seconds(scenario: Scenario) -> float:
    """How long a proposal waits."""
    return float(scenario.ratio.approval_seconds or APPROVAL_SECONDS)


def hold_of(scenario: Scenario) -> CountsHold | None:
    """Counts that a person set for a while."""
    hold = scenario.ratio.hold
    if hold is None:
        return None
    counts = hold.counts
    return CountsHold(Counts(counts.groups, counts.prefill, counts.decode), epoch_of(hold.until))
