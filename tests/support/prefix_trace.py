"""Prompts of the shape of a published trace.

They come in sessions: a first one, then later ones that begin with all of the one before. Their
lengths, growth, gaps and number follow the conversation trace of Mooncake (FAST'25, Apache-2.0):
12,031 requests in 59 minutes, 12,035 prompt tokens on average in blocks of 512, 39 % of which
continue a session, 36.6 % of all blocks seen before; all share one block of a system prompt.
"""

from __future__ import annotations

import itertools
import random
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK = 512
"""Tokens."""
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Prompt:
    """One request of a trace."""

    at: float
    """Seconds from the start."""
    session: int
    blocks: array[int]
    """Ids of its blocks, equal where all tokens up to their end are equal."""

    @property
    def tokens(self) -> int:
        """Length of the prompt."""
        return BLOCK * len(self.blocks)


def conversations(seconds: float, rate: float, seed: int) -> list[Prompt]:
    """A trace of that shape, in order of time; `rate`: requests a second."""
    rng = random.Random(seed)
    found: list[Prompt] = []
    ids = itertools.count(1)
    sessions = itertools.count()
    start = -1800.0
    while (start := start + rng.expovariate(rate / 1.63)) < seconds:
        at, session = start, next(sessions)
        blocks = [0, *_new(ids, rng.lognormvariate(2.4, 1.16))]
        while at < seconds:
            if at >= 0:
                found.append(Prompt(at, session, array("Q", [spread(b) for b in blocks])))
            if rng.random() > 0.387 or len(blocks) > 250:
                break
            at += rng.lognormvariate(4.8, 1.1)
            blocks = [*blocks, *_new(ids, rng.lognormvariate(0.7, 1.5))]
    return sorted(found, key=lambda p: p.at)


def _new(ids: Iterator[int], count: float) -> list[int]:
    return [next(ids) for _ in range(min(240, 1 + int(count)))]


def spread(number: int) -> int:
    """Spread over 64 bits, as digests are."""
    return (number * 0x9E3779B97F4A7C15 + 1) & _MASK
