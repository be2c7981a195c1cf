"""Slot hints as they travel in reply headers.

Accept, reject and release replies say how many slots are free and when the next one is expected,
with an epoch that grows inside one engine process. A hint only says whom to ask first and when it
is worth asking: it never authorises anything, the instance decides (P/D-Serve section 3.5).
"""

from __future__ import annotations

from typing import NamedTuple

MAX_SLOTS = 1 << 20
"""Of one instance; a count above it is none, and would draw all requests there."""


class Hint(NamedTuple):
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
    counts = 0 <= hint.free <= hint.total <= MAX_SLOTS
    if not (counts and 0.0 <= hint.free_in < float("inf")):
        return None
    return hint
