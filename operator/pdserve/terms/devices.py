"""Accelerators as the network sees them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator: its index on the node and its RoCE address (None where unknown)."""

    id: int
    ip: str | None = None


def is_ip(text: str) -> bool:
    """Whether a text is a literal IPv4 or IPv6 address, without brackets, port or prefix length."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
