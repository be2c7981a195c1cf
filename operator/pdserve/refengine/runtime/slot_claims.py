"""Requests that have a slot but do not compute yet, and names that were released early.

A claim takes a slot when a request is accepted and keeps it while its prompt is tokenised; it
ends as a running sequence or is dropped. A release may overtake its request on another
connection: its name is remembered for `REMEMBER_SECONDS`, so that the late request is refused
instead of computing KV that is never pulled. Pure bookkeeping; the clock is an argument.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

REMEMBER_SECONDS = 5.0
MOST_REMEMBERED = 4096
"""Names kept at once; the oldest goes first. With the bound on a name's length: 1 MB at most."""


@dataclass(slots=True, eq=False)
class SlotClaim:
    """One slot taken for a request that is being prepared.

    `released` is called when the name is released meanwhile. `open` until it became a
    sequence or was dropped.
    """

    name: str
    released: Callable[[], None]
    open: bool = True


class EarlyReleases:
    """Names that were released before a request of that name came."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._until)

    def remember(self, name: str, now: float) -> None:
        """Refuse this name from now on, for `REMEMBER_SECONDS`."""
        self._expire(now)
        self._until.pop(name, None)
        self._until[name] = now + REMEMBER_SECONDS
        if len(self._until) > MOST_REMEMBERED:
            del self._until[next(iter(self._until))]

    def has(self, name: str, now: float) -> bool:
        """Whether a name was released early and is still remembered."""
        self._expire(now)
        return name in self._until

    def _expire(self, now: float) -> None:
        # Insertion order is the order of expiry.
        while self._until:
            name = next(iter(self._until))
            if self._until[name] > now:
                return
            del self._until[name]
