"""Values the ratio loop reads and writes; no decisions here.

`telemetry` fills a `ScenarioSample`, `ratio.learn` keeps the `PerformanceProfile`, the controller
adds what the cluster says, and `ratio.decide.decide` turns the resulting `DecisionInput` into a
`Decision`. Every type is a frozen dataclass that `ratio.records` writes to JSON and reads back, so
that a recorded input can be decided again byte for byte. Times are seconds since the epoch (UTC),
durations are seconds, token counts are means per request unless a name says otherwise.
Definitions of the quantities: docs/architecture.md and dataplane terms in docs/concepts.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, TypeGuard

from pdserve.ratio.profile import PerformanceProfile
from pdserve.terms import Role, Slo

Mode = Literal["Auto", "Advise", "Fixed", "External"]
Outcome = Literal["Applied", "Advised", "Blocked", "Held"]


@dataclass(frozen=True, slots=True)
class Unknown:
    """A quantity that could not be measured, and why. Never treated as zero."""

    reason: str


Quantity = float | Unknown


def known(value: Quantity) -> TypeGuard[float]:
    """Whether the quantity was measured and can be one: every quantity is finite and >= 0."""
    return not isinstance(value, Unknown) and math.isfinite(value) and value >= 0.0


class Reason(StrEnum):
    """Why a decision came out as it did (CamelCase, stable: people and alerts match on it)."""

    # changes
    MODEL_FLOOR = "ModelFloor"
    PREFILL_SHORTAGE = "PrefillShortage"
    DECODE_SHORTAGE = "DecodeShortage"
    SURPLUS = "Surplus"
    BOUNDS_CHANGED = "BoundsChanged"
    FIXED_COUNTS = "FixedCounts"
    # no change
    STEADY = "Steady"
    EXTERNAL_OWNER = "ExternalOwner"
    IN_FLIGHT = "InFlight"
    DWELL = "Dwell"
    CONFIRMING_SURPLUS = "ConfirmingSurplus"
    HOLD_NO_DATA = "HoldNoData"
    REQUESTS_FAIL = "RequestsFail"
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


@dataclass(frozen=True, slots=True)
class Demand:
    """What clients ask of the scenario."""

    rate: float
    """Offered requests per second."""
    prompt_tokens: float
    uncached_tokens: float
    """Mean L: prompt tokens that prefill must compute."""
    uncached_squared: float
    """Mean L^2."""
    output_tokens: float

    @property
    def context_tokens(self) -> float:
        """Mean context of a request over its decode life, in tokens: prompt + half the output."""
        return self.prompt_tokens + self.output_tokens / 2


@dataclass(frozen=True, slots=True)
class ExpectedTraffic:
    """`scenarios[].expected` of the API: used until traffic was measured."""

    prompt_tokens: float
    output_tokens: float
    requests_per_second: float
    prefix_hit: float = 0.0
    """0..1."""


@dataclass(frozen=True, slots=True)
class RequestWindow:
    """What gateways counted over the last `seconds`, by logical request. Increases, not rates."""

    seconds: float
    """Above 0."""
    scrapes: Quantity
    """Samples per series in the window (the fewest over live gateways)."""
    offered: Quantity
    met: Quantity
    """Met TTFT, handoff and TPOT, and completed."""
    ttft_met: Quantity
    completed: Quantity
    prompt_tokens: Quantity
    """Sum over completed requests; likewise the next two."""
    output_tokens: Quantity
    cached_tokens: Quantity


@dataclass(frozen=True, slots=True)
class PrefillWindow:
    """Sums over warm live prefill instances, increases over the sample's shortest window."""

    instances: int
    """How many live, warm instances the sums cover."""
    batches: Quantity
    requests: Quantity
    compute_seconds: Quantity
    tokens: Quantity
    tokens_squared: Quantity
    kv_wait_seconds: Quantity
    """Slot time spent waiting for a decode: decode pressure, never prefill time."""
    kv_transfer_seconds: Quantity
    kv_transfers: Quantity


@dataclass(frozen=True, slots=True)
class DecodeWindow:
    """Sums over warm live decode instances, increases over the sample's shortest window."""

    instances: int
    steps: Quantity
    step_seconds: Quantity
    step_requests: Quantity
    """Sum over steps of the batch size."""
    step_context: Quantity
    """Sum over steps of the batch's context tokens."""


@dataclass(frozen=True, slots=True)
class ScenarioSample:
    """All measured about one scenario at one moment."""

    at: float
    """The moment, by the metrics server's own clock."""
    age: Quantity
    """Age in seconds, at that moment, of the newest sample of the most outdated live gateway."""
    windows: tuple[RequestWindow, ...]
    """The same counts over growing windows, the shortest first; no two are as long."""
    prefill: PrefillWindow
    decode: DecodeWindow
    decode_overload: Quantity
    """Requests that failed because no decode took them in time."""
    expired: Quantity
    """Requests whose deadline passed before or after prefill."""
    failed: Quantity
    """Requests that failed for another reason than time or load: more instances do not help."""
    waiting: Quantity
    """Requests in the gateways' waiting rooms now."""
    ttft_seconds: Quantity
    """Mean over the shortest window."""
    live: int
    """Gateways and warm instances that ought to report."""
    missing: tuple[str, ...] = ()
    """Names of those that did not (first 10, sorted)."""
    missing_count: int = 0
    lag: float = 0.0
    """Seconds that `at` lies before the time of asking."""


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """Operator flags of the loop, in seconds. The demo shortens them all by one factor."""

    control_period: float = 60.0
    """Slow loop: the model sets a floor."""
    fast_period: float = 15.0
    """Fast loop: evidence and hard signals."""
    window: float = 60.0
    """Shortest window; `telemetry` also asks for longer ones."""
    cold_start: float = 60.0
    """Time from a decision to serving instances; measured by the controller when it can."""
    grow_dwell: float = 60.0
    """Least time between a change and growth."""
    shrink_dwell: float = 300.0
    """Least time between a change and shrinking, and how long a surplus must last."""
    in_flight_limit: float = 600.0
    """A change that is not complete after this no longer blocks the next."""
    stale_after: float = 60.0
    min_scrapes: float = 4.0
    evidence_requests: float = 300.0
    """A window with this many offered requests needs no growing."""
    evidence_confidence: float = 0.9
    shrink_margin: float = 0.2
    """Predicted load is raised by this share before a reduction is accepted."""
    pressure_fade: float = 1800.0
    """Time constant with which a proven extra load is forgotten."""
    max_missing: float = 0.1
    """Share of live reporters that may be missing before data count as partial."""


@dataclass(frozen=True, slots=True)
class RoleDevices:
    """Devices one instance of a role takes."""

    resource: str
    devices: int


@dataclass(frozen=True, slots=True)
class BudgetLimit:
    """Devices of one resource this scenario may use in all (others' use already taken off)."""

    resource: str
    devices: int


@dataclass(frozen=True, slots=True)
class PlacementLimit:
    """Placement's answer for one shape of P/D group: at most `groups` of it can stand now,
    the existing ones included.
    """

    prefill: int
    decode: int
    groups: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class LoopMemory:
    """What one round tells the next. Losing it (operator restart) costs one slow round."""

    last_slow: float | None = None
    surplus_since: float | None = None
    unready_since: float | None = None
    settled_at: float | None = None
    """Since when every wanted instance is ready: evidence from before does not count."""
    settled_counts: Counts | None = None
    base_share: float | None = None
    """Prefill's share of a request's compute in healthy times (P/D-Serve section 3.3)."""
    base_compute: float | None = None
    """That compute, prefill and decode, in seconds per request."""
    pressure_prefill: float = 1.0
    """How much harder the load proved than the model said; fades towards 1. Likewise decode."""
    pressure_decode: float = 1.0
    pressure_at: float | None = None


@dataclass(frozen=True, slots=True)
class CountsCandidate:
    """Counts that were considered."""

    counts: Counts
    devices: int
    attainment: float
    """Predicted share of offered requests that meet the SLO."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """One round's result. `inputs` holds rounded numbers as short strings, for people."""

    time: float
    before: Counts
    """`from` in the API's status (a keyword in Python)."""
    to: Counts
    outcome: Outcome
    reason: Reason
    message: str
    inputs: tuple[tuple[str, str], ...] = ()
    candidates: tuple[CountsCandidate, ...] = ()
    memory: LoopMemory = field(default_factory=LoopMemory)

    @property
    def changes(self) -> bool:
        """Whether the operator has counts to apply."""
        return self.outcome == "Applied" and self.to != self.before


@dataclass(frozen=True, slots=True)
class PastChange:
    """A change made earlier (from status `decisions[]`, outcome Applied)."""

    time: float


@dataclass(frozen=True, slots=True)
class DecisionInput:
    """Everything `decide` may look at, for one scenario, at one moment."""

    now: float
    service: str
    scenario: str
    mode: Mode
    bounds: Bounds
    slo: Slo
    current: Counts
    """The counts now wanted (ScenarioGroup spec)."""
    ready_prefill: int
    """Ready instances over all groups; likewise decode."""
    ready_decode: int
    sample: ScenarioSample | Unknown
    prefill_devices: RoleDevices
    decode_devices: RoleDevices
    fixed: Counts | None = None
    profile: PerformanceProfile | None = None
    expected: ExpectedTraffic | None = None
    budget: tuple[BudgetLimit, ...] = ()
    placement: tuple[PlacementLimit, ...] = ()
    """Shapes already known not to fit more often; others count as placeable."""
    changes: tuple[PastChange, ...] = ()
    settings: LoopSettings = field(default_factory=LoopSettings)
    memory: LoopMemory = field(default_factory=LoopMemory)
