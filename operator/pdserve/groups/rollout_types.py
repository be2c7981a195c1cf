"""How a rollout is to go, and how far it went. Values only, for the planner's input and output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Order = Literal["Auto", "CreateFirst", "DeleteFirst"]


@dataclass(frozen=True, slots=True)
class RolloutWanted:
    """`spec.rollout` as the planner takes it: how P/D groups of another revision are replaced."""

    order: Order = "Auto"
    max_unavailable: int = 1
    """P/D groups replaced at once, as soon as one of the new revision serves."""
    canary: int | None = None
    """P/D groups after which it waits; None: it does not wait, or was let go on."""
    deadline: float = 1800.0
    """Seconds in which a new P/D group must serve."""
    allow_outage: bool = False
    """Whether the only P/D group that serves may go before its successor is there."""
    paused: bool = False
    waits_for: str = ""
    """Scenario whose rollout comes first; empty: it is this one's turn."""


DEFAULT: Final = RolloutWanted()


@dataclass(frozen=True, slots=True)
class RolloutState:
    """What outlives a restart of the operator, in ScenarioGroup status `rollout`."""

    revision: str = ""
    """The revision wanted when it was noted."""
    stable: str = ""
    """The last one that all P/D groups served with; empty before the first."""
    serving: int = 0
    """Most P/D groups of `revision` that served at once."""
    since: float | None = None
    """Since when P/D groups of it start and no further one serves; None while none starts."""


UNKNOWN: Final = RolloutState()
"""Nothing is remembered."""
