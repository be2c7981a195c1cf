"""Time zones by their IANA names, from the machine's database or the `tzdata` package."""

from __future__ import annotations

from datetime import UTC, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo


@lru_cache(maxsize=128)
def zone_of(name: str) -> tzinfo:
    """The zone of a name such as `Asia/Shanghai` or `UTC`.

    Raises:
        KeyError, ValueError, OSError: there is no zone of that name.
    """
    return UTC if name == "UTC" else ZoneInfo(name)


def is_zone(name: str) -> bool:
    """Whether it is the name of a time zone that is known here."""
    try:
        zone_of(name)
    except (OSError, ValueError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        return False
    return True
