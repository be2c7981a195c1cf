"""What `pdserve local` tells a person when it cannot go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Progress = Callable[[str], None]
"""Receives one line at a time about something that takes long."""

_TAIL_LINES = 15


class LocalError(RuntimeError):
    """The local cluster cannot do what was asked; the message says what and what to do."""


def quiet(line: str) -> None:
    """A `Progress` that says nothing."""


def log_tail(path: Path, lines: int = _TAIL_LINES) -> str:
    """The last lines of a log, indented for an error message; says so when there are none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"  (no log at {path})"
    kept = [line[:500] for line in text.splitlines()[-lines:]]
    return "\n".join(f"  | {line}" for line in kept) if kept else f"  (empty log {path})"
