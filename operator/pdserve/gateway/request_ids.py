"""Ids of requests and of their legs."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from itertools import count

from pdserve.wire.calls import HEADER_REQUEST_ID

REQUEST_ID = HEADER_REQUEST_ID.encode()
_SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/")
_LENGTH = 96
"""Engines take ids up to 128 characters; a suffix makes each leg's unique."""


class RequestIds:
    """Ids that no other process of the service gives."""

    def __init__(self) -> None:
        self._boot = secrets.token_hex(6)
        self._count = count(1)

    def of(self, headers: Mapping[bytes, bytes]) -> str:
        """The client's own id where it is one, else a new one."""
        given = headers.get(REQUEST_ID, b"")
        if given and len(given) <= _LENGTH and _SAFE.issuperset(given):
            return given.decode()
        return f"req-{self._boot}{next(self._count):012x}"

    def leg_name(self, request_id: str) -> str:
        """What the ids of a request's legs begin with.

        Clients choose the request's; what engines hold KV under must be unique.
        """
        return f"{request_id}-{self._boot}{next(self._count):x}"
