"""Looks at everything that may be overdue, instead of a timer for each.

Nearly every wait of a request ends long before its time is over. A timer that is set and cancelled
costs some microseconds each time, and a request has several; here a wait is an entry in a set, and
one timer looks at them all as long as there are any.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

PERIOD = 0.02
"""Seconds between two looks: an entry may be this much late."""


class Overdue(Protocol):
    """What can be late."""

    due: float
    """Seconds of `time.perf_counter`; it may be set anew at any time."""

    def overdue(self) -> None:
        """Called when `due` has passed, and again at each look until it is set anew."""


class Sweeper:
    """The entries of one process; they are its users' to add and to discard."""

    def __init__(self) -> None:
        self._entries: set[Overdue] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, entry: Overdue) -> None:
        """Look at it until it is discarded."""
        self._entries.add(entry)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PERIOD, self._look)

    def discard(self, entry: Overdue) -> None:
        """Look at it no more; harmless when it is not there."""
        self._entries.discard(entry)

    def _look(self) -> None:
        self._timer = None
        now = time.perf_counter()
        loop = asyncio.get_running_loop()
        for entry in [entry for entry in self._entries if entry.due <= now]:
            # By itself: one that raises holds up no other.
            loop.call_soon(self._tell, entry)
        if self._entries:
            self._timer = loop.call_later(PERIOD, self._look)

    def _tell(self, entry: Overdue) -> None:
        # Since the look it may have been discarded, or wait for something else.
        if entry in self._entries and entry.due <= time.perf_counter():
            entry.overdue()
