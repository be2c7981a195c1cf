"""Counts that never change."""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.ratio.types import Counts
from pdserve.sim.policies.base import Choice, Moment, World


@dataclass(slots=True)
class FixedCounts:
    """The counts that serve from the start, for ever."""

    counts: Counts
    period: float = 60.0

    def decide(self, moment: Moment) -> Choice:
        """The same counts."""
        return Choice(self.counts, "fixed")


def at_start(world: World) -> FixedCounts:
    """Fixed at the shape's first counts."""
    return FixedCounts(world.shape.start)
