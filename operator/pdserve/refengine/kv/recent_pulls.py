"""How many pulls from each prefill arrived lately, and how many of them corrupt. Pure.

The operator reads this from link reports and finds out which instance is at fault. Two spans are
kept, so what counts is between `SPAN` and twice as many seconds old at most.
"""

from __future__ import annotations

from collections.abc import Mapping

SPAN = 300.0


class RecentPulls:
    """Counts by prefill; `now` is in seconds on the caller's clock."""

    def __init__(self) -> None:
        self._began = 0.0
        self._former: dict[str, tuple[int, int]] = {}
        self._current: dict[str, tuple[int, int]] = {}

    def count(self, peer: str, corrupt: bool, now: float) -> None:
        """One pull from `peer` arrived."""
        self._turn(now)
        pulls, bad = self._current.get(peer, (0, 0))
        self._current[peer] = pulls + 1, bad + corrupt

    def report(self, now: float) -> Mapping[str, tuple[int, int]]:
        """Pulls and corrupt ones among them by prefill."""
        self._turn(now)
        found = dict(self._former)
        for peer, (pulls, bad) in self._current.items():
            old_pulls, old_bad = found.get(peer, (0, 0))
            found[peer] = old_pulls + pulls, old_bad + bad
        return found

    def _turn(self, now: float) -> None:
        spans = int((now - self._began) // SPAN)
        if spans:
            self._former = self._current if spans == 1 else {}
            self._current = {}
            self._began += spans * SPAN
