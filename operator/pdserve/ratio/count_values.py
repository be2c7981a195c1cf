"""Counts of a scenario, their bounds, and why a decision came out as it did; read by `types`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pdserve.terms import Role


class Reason(StrEnum):
    """Why a decision came out as it did (CamelCase, stable: people and alerts match on it)."""

    # changes
    MODEL_FLOOR = "ModelFloor"
    PREFILL_SHORTAGE = "PrefillShortage"
    DECODE_SHORTAGE = "DecodeShortage"
    SURPLUS = "Surplus"
    TIDAL_WINDOW = "TidalWindow"
    NO_EFFECT = "NoEffect"
    BOUNDS_CHANGED = "BoundsChanged"
    FIXED_COUNTS = "FixedCounts"
    ON_HOLD = "OnHold"
    # no change
    STEADY = "Steady"
    EXTERNAL_OWNER = "ExternalOwner"
    IN_FLIGHT = "InFlight"
    DWELL = "Dwell"
    CONFIRMING_SURPLUS = "ConfirmingSurplus"
    HOLD_NO_DATA = "HoldNoData"
    REQUESTS_FAIL = "RequestsFail"
    INFEASIBLE_REQUESTS = "InfeasibleRequests"
    SLOW_INSTANCE = "SlowInstance"
    REJECTED = "Rejected"
    # wanted, not possible
    AT_MAXIMUM = "AtMaximum"
    BUDGET_EXHAUSTED = "BudgetExhausted"
    PLACEMENT_INFEASIBLE = "PlacementInfeasible"
    SLO_UNREACHABLE = "SloUnreachable"


@dataclass(frozen=True, slots=True, order=True)
class Counts:
    """P/D groups of a scenario, and instances per role in **each** group."""

    groups: int
    prefill: int
    decode: int

    def total(self, role: Role) -> int:
        """Instances of a role over all groups."""
        return self.groups * (self.prefill if role == "prefill" else self.decode)

    def __str__(self) -> str:
        """E.g. `2x(3P1D)`."""
        return f"{self.groups}x({self.prefill}P{self.decode}D)"


@dataclass(frozen=True, slots=True)
class Range:
    """An inclusive range of integers."""

    min: int
    max: int

    def clamp(self, value: int) -> int:
        """The integer of the range that is nearest to `value`."""
        return max(self.min, min(self.max, value))


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the owner of the model allows: P/D groups, and instances per role in each group."""

    groups: Range
    prefill: Range
    decode: Range

    def clamp(self, counts: Counts) -> Counts:
        """The nearest counts inside the bounds, each of the three by itself."""
        return Counts(
            self.groups.clamp(counts.groups),
            self.prefill.clamp(counts.prefill),
            self.decode.clamp(counts.decode),
        )
