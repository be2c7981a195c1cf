"""How a new revision replaces the P/D groups of the one before it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import StrictBool

from pdserve.api.base import ApiModel, Int, Observed, Text
from pdserve.api.common import MAX_GROUPS
from pdserve.api.strings import Time

_REVISION = Text(8, min=8, pattern=r"^[0-9a-f]{8}$", says="a revision: eight hex digits")


class Rollout(ApiModel):
    """How a new revision replaces the P/D groups of the one before it."""

    order: Literal["Auto", "CreateFirst", "DeleteFirst"] = "Auto"
    """Whether the new P/D group is made before an old one goes. Auto: before, where devices are
    spare, else after it. CreateFirst waits for spare devices; DeleteFirst never does."""
    max_unavailable_groups: Annotated[int, Int(1, MAX_GROUPS)] = 1
    """P/D groups that may be replaced at once, as soon as one of the new revision serves. Until
    then it is one."""
    canary_groups: Annotated[int, Int(1, MAX_GROUPS)] | None = None
    """P/D groups of each scenario that get the new revision before the rollout waits for
    `promotedRevision`; absent: it does not wait. A way back to the last complete revision never
    waits."""
    promoted_revision: Annotated[str, _REVISION] | None = None
    """Revision that rolls on past `canaryGroups`; `kubectl pdserve rollout resume` sets it."""
    progress_deadline_seconds: Annotated[int, Int(1, 86_400)] | None = None
    """Time in which a P/D group of the new revision must serve, or else the rollout stops; absent:
    twice the longer `startupDeadlineSeconds` of the two roles."""
    scenarios: Literal["OneByOne", "Together"] = "OneByOne"
    """Whether a scenario's rollout waits until those listed before it are complete. One that waits
    for devices holds no other up."""
    allow_outage: StrictBool = False
    """Whether the only P/D group that serves may go before its successor is there. The scenario
    then answers 503 meanwhile."""
    paused: StrictBool = False
    """No P/D group is replaced for another revision. Lost instances are replaced and counts are
    followed all the same."""


class RolloutStatus(Observed):
    """What a restart of the operator must know of a rollout."""

    revision: Annotated[str, Text(63, min=0)] = ""
    """The revision that is wanted."""
    stable_revision: Annotated[str, Text(63, min=0)] = ""
    """The last one that all P/D groups served with; empty before the first."""
    serving_groups: Annotated[int, Int(0, 1 << 20)] = 0
    """Most P/D groups of the wanted revision that served at once."""
    waiting_since_time: Time | None = None
    """Since when P/D groups of it start and no further one serves; absent while none starts."""
