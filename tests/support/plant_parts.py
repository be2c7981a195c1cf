"""What a plant is made of: requests, their lengths and rates, prefill and decode instances."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

Rate = Callable[[float], float]
PREFETCH = 2
"""KV caches a decode instance fetches ahead of a free slot."""
Lengths = Callable[[float, random.Random], tuple[int, int]]


def steady(rate: float) -> Rate:
    return lambda _t: rate


def lengths(prompt: int, output: int, spread: float = 0.3) -> Lengths:
    """Lognormal lengths around the given means."""

    def draw(_t: float, rng: random.Random) -> tuple[int, int]:
        mu = -spread * spread / 2
        return (
            max(1, round(prompt * math.exp(rng.gauss(mu, spread)))),
            max(3, round(output * math.exp(rng.gauss(mu, spread)))),
        )

    return draw


@dataclass(slots=True)
class Request:
    arrived: float
    prompt: int
    output: int
    first: float = 0.0
    computed: float = 0.0
    decode_from: float = 0.0
    finish_at_token: float = 0.0


@dataclass(slots=True)
class Prefill:
    name: str
    group: int
    ready_at: float
    draining: bool = False
    held: int = 0
    pending: list[Request] = field(default_factory=list)
    busy: bool = False


@dataclass(slots=True)
class Decode:
    name: str
    group: int
    ready_at: float
    draining: bool = False
    reserved: int = 0
    queued: list[Request] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)
    context: float = 0.0
    """Context tokens of the running batch (prompts and half the answers)."""
    token: float = 0.0
    """Tokens every running stream has made since this instance started."""
    moved_at: float = 0.0
    generation: int = 0
