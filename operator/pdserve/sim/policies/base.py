"""What a policy sees and answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pdserve.ratio.profile import PerformanceProfile
from pdserve.ratio.types import Bounds, Counts, ScenarioSample, Unknown
from pdserve.sim.shapes import TrafficShape
from pdserve.sim.virtual_prometheus import VirtualPrometheus
from pdserve.terms import Slo


@dataclass(frozen=True, slots=True)
class Moment:
    """All that is known when a policy decides."""

    now: float
    counts: Counts
    """Those that are wanted now."""
    ready_prefill: int
    ready_decode: int
    sample: ScenarioSample | Unknown
    """What our own loop reads."""
    metrics: VirtualPrometheus
    """For laws that read other series."""
    prefills: tuple[str, ...]
    """Pods of each role that are ready."""
    decodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PolicyChoice:
    """Counts, and why; `batch_limit` has gateways admit at most so many requests a decode."""

    counts: Counts
    reason: str
    batch_limit: int | None = None


@dataclass(frozen=True, slots=True)
class PolicyWorld:
    """What a policy is configured with.

    Laws of others that need measured performance get the plant's own profile, which flatters them;
    our loop learns its own.
    """

    shape: TrafficShape
    profile: PerformanceProfile

    @property
    def slo(self) -> Slo:
        """The scenario's targets."""
        return self.shape.slo

    @property
    def bounds(self) -> Bounds:
        """What the owner allows."""
        return self.shape.bounds


class Policy(Protocol):
    """One law, with its own state."""

    period: float
    """Seconds between two decisions."""

    def decide(self, moment: Moment) -> PolicyChoice:
        """Counts from now on; the caller clamps them to bounds and budget."""
        ...
