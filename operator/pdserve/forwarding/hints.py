"""Slot hints as they travel in reply headers, and the rule by which stale ones lose.

Accept, reject and release replies say how many slots are free and when the next one is expected,
with an epoch that grows inside one engine process. A hint only says whom to ask first and when it
is worth asking: it never authorises anything, the instance decides (P/D-Serve section 3.5).
"""

from __future__ import annotations

from dataclasses import dataclass

RESTART_AFTER = 1.0
"""Seconds after which a lower epoch is a restarted process rather than a late reply."""
MAX_FREE_IN = 2.0
"""A hint holds a candidate back at most this many seconds: a wrong one must not starve it."""


@dataclass(frozen=True, slots=True)
class Hint:
    """One statement of an instance: `free` of `total` slots, the next free in `free_in` seconds."""

    free: int
    total: int
    free_in: float
    epoch: int


def parse_hint(slots: bytes, free_in_ms: bytes = b"0", epoch: bytes = b"0") -> Hint | None:
    """The hint in the values of reply headers; None when malformed.

    `slots` is `free/total`. A malformed hint is ignored, not an error: a request never fails
    because of a hint.
    """
    try:
        free, _, total = slots.partition(b"/")
        hint = Hint(
            free=int(free),
            total=int(total),
            free_in=float(free_in_ms) / 1000.0,
            epoch=int(epoch),
        )
    except ValueError:
        return None
    if not (0 <= hint.free <= hint.total and 0.0 <= hint.free_in < float("inf")):
        return None
    return hint


def supersedes(epoch: int, known_epoch: int, known_age: float) -> bool:
    """True when a hint of `epoch` replaces the known one received `known_age` seconds ago.

    Equal epochs are the same state said again. A lower one is a late reply of the past, unless
    the known one is older than any reply could be late: then the process has restarted.
    """
    return epoch >= known_epoch or known_age > RESTART_AFTER
