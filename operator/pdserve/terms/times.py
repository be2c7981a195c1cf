"""Times as objects state them (RFC 3339, UTC) <-> seconds since the epoch."""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from typing import Final

_LONGEST: Final = 64
"""Characters of a time that `timestamp` reads."""


def rfc3339(epoch: float) -> str:
    """UTC time to the second, e.g. `2026-01-31T08:15:00Z`; fractions are cut.

    `epoch`: seconds since 1970-01-01 UTC.
    """
    return datetime.fromtimestamp(epoch, UTC).isoformat(timespec="seconds")[:-6] + "Z"


def epoch_of(time: str) -> float:
    """Seconds since 1970-01-01 UTC of an RFC 3339 time with any offset.

    Raises:
        ValueError: `time` is not such a time.
    """
    moment = datetime.fromisoformat(time)
    if moment.tzinfo is None:
        raise ValueError(f"time {time!r}: must end in Z or an offset")
    return moment.timestamp()


def timestamp(value: object) -> float | None:
    """Seconds since 1970-01-01 UTC of an RFC 3339 time; None where absent or malformed."""
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST:
        return None
    return _epoch(value)


@functools.lru_cache(maxsize=4096)
def _epoch(value: str) -> float | None:
    try:
        return datetime.fromisoformat(value).timestamp()
    except (ValueError, OverflowError):
        return None
