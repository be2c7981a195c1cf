"""What waits for a person, what a person answered, and counts that a person set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pdserve.ratio.count_values import Counts, Reason

Verdict = Literal["Approve", "Reject"]


@dataclass(frozen=True, slots=True)
class PendingChange:
    """A change that the loop would make, and that waits for a person. Times in whole seconds."""

    id: str
    """Names this proposal alone: an answer to another does not count."""
    time: float
    expires: float
    """When it is withdrawn; of a rejected one, until when it is not made again."""
    before: Counts
    to: Counts
    reason: Reason
    message: str
    attainment: float | None
    """Predicted with `to`, 0 to 1, to 0.01 %; None without a model."""
    rejected: bool = False


@dataclass(frozen=True, slots=True)
class ProposalAnswer:
    """A person's answer to one proposal."""

    proposal: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class CountsHold:
    """Counts that a person set, and until when the loop leaves them (seconds since the epoch)."""

    counts: Counts
    until: float
