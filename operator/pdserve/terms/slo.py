"""Service level objective of a scenario."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slo:
    """Targets in seconds, and the share of **offered** requests that must meet all of them."""

    ttft: float
    """Time to first token, from arrival at the gateway."""
    handoff: float
    """Time between the first token and the second, in which the KV cache moves."""
    tpot: float
    """Mean time per further output token."""
    attainment: float
    """0..1, e.g. 0.99."""
