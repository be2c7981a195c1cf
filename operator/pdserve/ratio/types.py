"""Values the ratio loop reads and writes; no decisions here.

`telemetry` fills a `ScenarioSample`, `ratio.learn` keeps the `PerformanceProfile`, the controller
adds what the cluster says, and `ratio.decide.decide` turns the resulting `DecisionInput` into a
`Decision`. Every type is a frozen dataclass that `ratio.records` writes to JSON and reads back, so
that a recorded input can be decided again byte for byte. Times are seconds since the epoch (UTC),
durations are seconds, token counts are means per request unless a name says otherwise.
Definitions of the quantities: docs/architecture.md and dataplane terms in docs/concepts.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pdserve.ratio.approval_values import CountsHold as CountsHold
from pdserve.ratio.approval_values import PendingChange as PendingChange
from pdserve.ratio.approval_values import ProposalAnswer as ProposalAnswer
from pdserve.ratio.count_values import Bounds as Bounds
from pdserve.ratio.count_values import Counts as Counts
from pdserve.ratio.count_values import Range as Range
from pdserve.ratio.count_values import Reason as Reason
from pdserve.ratio.profile import PerformanceProfile
from pdserve.ratio.sample import DecodeWindow as DecodeWindow
from pdserve.ratio.sample import InstanceWindow as InstanceWindow
from pdserve.ratio.sample import PrefillWindow as PrefillWindow
from pdserve.ratio.sample import Quantity as Quantity
from pdserve.ratio.sample import RecentWindow as RecentWindow
from pdserve.ratio.sample import RequestWindow as RequestWindow
from pdserve.ratio.sample import ScenarioSample as ScenarioSample
from pdserve.ratio.sample import Unknown as Unknown
from pdserve.ratio.sample import known as known
from pdserve.terms import Role, Slo

HELD_STARTS = 4.0
"""Cold starts for which instances without use are kept."""
Mode = Literal["Auto", "Advise", "Approve", "Fixed", "External"]
Outcome = Literal["Applied", "Advised", "Proposed", "Blocked", "Held"]


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
class LoopSettings:
    """Operator flags of the loop, in seconds. The demo shortens them all by one factor."""

    control_period: float = 60.0
    """Between two needs that are remembered, and between two forecasts that are checked."""
    fast_period: float = 5.0
    """Between two rounds."""
    window: float = 60.0
    """Shortest window; `telemetry` also asks for longer ones."""
    cold_start: float = 60.0
    """Time from a decision to serving instances; measured by the controller when it can."""
    grow_dwell: float = 60.0
    """Least time between a change and growth for want of attainment."""
    shrink_dwell: float = 300.0
    """How long a surplus of many instances must last before it is given back, at most."""
    shrink_step: float = 30.0
    """How long for each instance of a smaller surplus, in addition to one such time."""
    in_flight_limit: float = 600.0
    """A change that is not complete after this no longer blocks the next."""
    stale_after: float = 60.0
    min_scrapes: float = 3.0
    evidence_window: float = 180.0
    """Shortest window that tells whether the target is met: misses come in bursts."""
    evidence_requests: float = 300.0
    """A window with this many offered requests tells something, however short."""
    evidence_seconds: float = 600.0
    """So does one of this length with `least_requests`."""
    least_requests: float = 30.0
    evidence_confidence: float = 0.9
    shrink_margin: float = 0.06
    """The load of a role that shrinks is raised by this share before the prediction."""
    pressure_fade: float = 1800.0
    """Time constant with which a proven difference to the model is forgotten."""
    max_missing: float = 0.1
    """Share of live reporters that may be missing before data count as partial."""

    @property
    def cycle(self) -> float:
        """Seconds whose largest need nothing goes below: a few cold starts, two windows or more.

        What is kept for as long as a few starts take costs about as much as starting anew.
        """
        return min(max(HELD_STARTS * self.cold_start, 2.0 * self.window), self.shrink_dwell)


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
class WindowFloor:
    """What windows by clock ask for now (`ratio.windows`); 0 where they do not say."""

    names: tuple[str, ...]
    groups: int
    """Fewest P/D groups; the next two: fewest instances in each."""
    prefill: int
    decode: int
    rate: float
    """Requests per second to be ready for."""
    opens: float
    """When the last of them opens, or opened."""
    closes: float
    """When the last of them closes."""


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
class Need:
    """Fewest instances of each role that hold the predicted load, at one moment."""

    time: float
    prefill: int
    decode: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """Instances of each role that the load would keep wholly busy, at a time to come."""

    due: float
    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class Trial:
    """A growth of one role because measured attainment was below the target."""

    role: Role
    before: Counts
    pressure: float
    """The role's pressure before it."""
    offered: float
    """Of the evidence before it; likewise the next two."""
    met: float
    rate: float
    useless: bool = False
    """Evidence from after it showed no significant gain."""


@dataclass(frozen=True, slots=True)
class NoEffect:
    """Growth of a role did not help: not repeated while the load and the misses stay the same."""

    role: Role
    attainment: float
    rate: float


@dataclass(frozen=True, slots=True)
class LoadLevel:
    """Requests per second that stayed about the same since a moment."""

    since: float
    rate: float


@dataclass(frozen=True, slots=True)
class Levels:
    """The load as a sequence of levels (`ratio.recurrence`)."""

    past: tuple[LoadLevel, ...] = ()
    """Oldest first, the present one last."""
    minutes: tuple[tuple[float, float], ...] = ()
    """Times, and the rate over the minute before each; the last of them."""
    proved: int = 0
    """Expected steps that came, less those that did not; likewise `failed` the other way round."""
    failed: int = 0
    missed_by: float = 0.0
    """Seconds between the last of those steps and its time as expected."""


@dataclass(frozen=True, slots=True)
class LoopMemory:
    """What one round tells the next. Losing it (operator restart) costs one slow round."""

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
    """How much harder (below 1: easier) the load proved than the model said; fades towards 1.
    Likewise decode."""
    pressure_decode: float = 1.0
    pressure_at: float | None = None
    jumped_at: float | None = None
    """When the load was last seen to step up."""
    forecasts: tuple[Forecast, ...] = ()
    """Those that are not due yet, oldest first."""
    error_prefill: float = 0.0
    """Relative error of forecasts over the dead time, smoothed. Likewise decode."""
    error_decode: float = 0.0
    patience: float = 1.0
    """Factor on how long a surplus must last: it doubles with each reduction that was regretted."""
    shrunk_at: float | None = None
    """The last reduction; None where it is long ago, or was followed by growth."""
    needs: tuple[Need, ...] = ()
    """Of the last cycle, a point a period at most, oldest first."""
    trials: tuple[Trial, ...] = ()
    """Growths for want of attainment whose effect is not proved, oldest first."""
    no_effect: tuple[NoEffect, ...] = ()
    """Roles whose growth proved useless, one entry a role."""
    levels: Levels = field(default_factory=Levels)
    proposed_at: float | None = None
    """When a round last came to the change that waits for a person."""


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
    pending: PendingChange | None = None
    """What waits for a person after this round."""

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
    window: WindowFloor | None = None
    """What windows by clock ask for now."""
    pending: PendingChange | None = None
    """What waits for a person (mode Approve)."""
    answer: ProposalAnswer | None = None
    """The last answer of a person; it may be to an earlier proposal."""
    approval_seconds: float = 900.0
    """How long a proposal waits, and how long one that was rejected is not made again."""
    hold: CountsHold | None = None
    """Counts that a person set; it may be over."""
    changes: tuple[PastChange, ...] = ()
    settings: LoopSettings = field(default_factory=LoopSettings)
    memory: LoopMemory = field(default_factory=LoopMemory)
