"""Accelerators as the network sees them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator: its index on the node and its RoCE address (None where unknown)."""

    id: int
    ip: str | None = None
