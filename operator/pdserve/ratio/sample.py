"""What was measured about a scenario: counts and times over windows, and what is not known.

`telemetry` fills a `ScenarioSample`; `ratio.types` has the rest of the loop's values, and names
these too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeGuard

from pdserve.terms import Role


@dataclass(frozen=True, slots=True)
class Unknown:
    """A quantity that could not be measured, and why. Never treated as zero."""

    reason: str


Quantity = float | Unknown


def known(value: Quantity) -> TypeGuard[float]:
    """Whether the quantity was measured and can be one: every quantity is finite and >= 0."""
    return not isinstance(value, Unknown) and math.isfinite(value) and value >= 0.0


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
    arrived: Quantity = Unknown("not counted at arrival")
    """Requests that an idle prefill could answer in time, counted when they arrived."""
    arrived_tokens: Quantity = Unknown("not counted at arrival")
    """Their prompt tokens."""
    infeasible: Quantity = 0.0
    """Offered requests that no number of instances could answer in time."""


@dataclass(frozen=True, slots=True)
class RecentWindow:
    """The newest counts, over less than the shortest window: they show a step first."""

    seconds: float
    arrived: Quantity
    arrived_tokens: Quantity
    prefill_requests: Quantity
    """Requests whose prompts were computed, and the tokens that were not in a prefix cache."""
    prefill_tokens: Quantity
    completed: Quantity
    decode_tokens: Quantity
    """Tokens made by decodes, of all streams, complete or not."""


@dataclass(frozen=True, slots=True)
class InstanceWindow:
    """Times of one warm instance over the sample's shortest window.

    A prefill counts batches, and `first` and `second` are the sums of L and L^2; a decode counts
    steps, and they are the sums of the batch size and of the batch's context tokens.
    """

    name: str
    role: Role
    count: float
    seconds: float
    first: float
    second: float


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
    recent: RecentWindow | None = None
    instances: tuple[InstanceWindow, ...] = ()
    """Warm instances that computed in the shortest window, by name."""
