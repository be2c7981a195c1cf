"""Limits between processes: their JSON form, in the route table and between gateways. Pure."""

from __future__ import annotations

from pdserve.terms.limits import AMOUNTS, MAX_LIMIT, UsageLimits
from pdserve.wire.bounds import Fields


def read_limits(fields: Fields) -> UsageLimits:
    """Parse `UsageLimits.to_json`.

    Raises:
        WireError: an amount is no whole number of 0 to MAX_LIMIT; the message has the path.
    """
    return UsageLimits(*(fields.integer(name, 0, high=MAX_LIMIT) for name in AMOUNTS))
