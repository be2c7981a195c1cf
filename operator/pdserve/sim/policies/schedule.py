"""Counts by a timetable, each growth ordered one cold start ahead."""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.ratio.types import Counts
from pdserve.sim.policies.base import Moment, PolicyChoice


@dataclass(slots=True)
class CountsTimetable:
    """Prefills and decodes that must serve in each slot."""

    prefill: tuple[int, ...]
    decode: tuple[int, ...]
    slot: float
    """Seconds of one slot."""
    cold_start: float
    period: float = 5.0

    def decide(self, moment: Moment) -> PolicyChoice:
        """The most that any slot needs from now until a cold start later."""
        first = int(moment.now // self.slot)
        last = int((moment.now + self.cold_start) // self.slot)
        return PolicyChoice(
            Counts(1, max(self._of(self.prefill, first, last)),
                   max(self._of(self.decode, first, last))),
            "timetable",
        )  # fmt: skip

    def _of(self, wanted: tuple[int, ...], first: int, last: int) -> tuple[int, ...]:
        return wanted[first : last + 1] or wanted[-1:]
