"""`LocalError`, which this package raises when it cannot go on, and lines of progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

Progress = Callable[[str], None]
"""Receives one line at a time about something that takes long."""

SAY_EVERY_SECONDS = 10.0
_TAIL_LINES = 15


class LocalError(RuntimeError):
    """The local cluster cannot do what was asked; the message says what and what to do."""


def quiet(line: str) -> None:
    """A `Progress` that says nothing."""


def sparsely(progress: Progress, seconds: float = SAY_EVERY_SECONDS) -> Progress:
    """For what is still true a moment later: `progress` gets one line in so many seconds.

    Not the first one either, so that what is over sooner says nothing.
    """
    said = time.monotonic()

    def say(line: str) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= seconds:
            said = now
            progress(line)

    return say


def log_tail(path: Path, lines: int = _TAIL_LINES) -> str:
    """The last lines of a log, indented for an error message; says so when there are none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"  (no log at {path})"
    kept = [line[:500] for line in text.splitlines()[-lines:]]
    return "\n".join(f"  | {line}" for line in kept) if kept else f"  (empty log {path})"
