"""When a slot hint replaces an older one, and how long one holds a candidate back."""

from __future__ import annotations

RESTART_AFTER = 1.0
"""Seconds after which a lower epoch is a restarted process rather than a late reply."""
MAX_FREE_IN = 2.0
"""A hint holds a candidate back at most this many seconds: a wrong one must not starve it."""


def supersedes(epoch: int, known_epoch: int, known_age: float) -> bool:
    """True when a hint of `epoch` replaces the known one received `known_age` seconds ago.

    Equal epochs are the same state said again. A lower one is a late reply of the past, unless
    the known one is older than any reply could be late: then the process has restarted.
    """
    return epoch >= known_epoch or known_age > RESTART_AFTER
