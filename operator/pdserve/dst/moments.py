"""The API model's wall clock, as the timestamps that objects carry."""

from __future__ import annotations

import asyncio

from pdserve.dst.api_server import START
from pdserve.terms.times import rfc3339


def now() -> float:
    """Virtual seconds since the epoch, as the API model stamps objects."""
    return START.timestamp() + asyncio.get_running_loop().time()


def stamp() -> str:
    """`now` as Kubernetes writes times."""
    return rfc3339(now())
