"""Every reason of an Event that the operator writes. Documentation and alerts name these."""

from __future__ import annotations

from typing import Final

CREATED: Final = "GroupCreated"
CREATE_FAILED: Final = "CreateFailed"
SUBSTITUTED: Final = "InstanceSubstituted"
GROWN: Final = "InstanceAdded"
DRAINING: Final = "InstanceDraining"
FLIPPED: Final = "InstanceFlipped"
DELETED: Final = "InstanceDeleted"
REFUSED: Final = "ObjectRefused"
WRITE_REFUSED: Final = "WriteRefused"
NO_FIT: Final = "NoFit"
UNCOVERED: Final = "EvictionUncovered"
HAND_EDIT: Final = "CountsPutBack"
COUNTS: Final = "CountsChanged"
PROPOSED: Final = "ChangeProposed"
WITHDRAWN: Final = "ProposalWithdrawn"
REJECTED: Final = "ProposalRejected"
TEMPLATE: Final = "TemplateInvalid"
INVALID: Final = "ObjectInvalid"
SKIPPED: Final = "ObjectSkipped"
API_REFUSED: Final = "RequestRefused"
SCENARIO_REMOVED: Final = "ScenarioRemoved"
STOPPED: Final = "ProgressDeadlineExceeded"

ALL: Final = frozenset(
    {
        CREATED, CREATE_FAILED, SUBSTITUTED, GROWN, DRAINING, FLIPPED, DELETED, REFUSED,
        WRITE_REFUSED, NO_FIT, UNCOVERED, HAND_EDIT, COUNTS, TEMPLATE, INVALID, SCENARIO_REMOVED,
        SKIPPED, API_REFUSED, STOPPED, PROPOSED, WITHDRAWN, REJECTED,
    }
)  # fmt: skip
