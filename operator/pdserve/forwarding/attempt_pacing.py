"""When a refused request may ask again: pace, not number, bounds what it costs.

The first two attempts at each candidate are free. Every later one waits a quarter of the time that
the request has been asking for, so the attempts of a request grow with the logarithm of its time:
2M + 4 + log(T / 0.04 s) / log(1.25) for M candidates and T seconds, 41 for two candidates and 30 s.
A cap on the number would fail requests that have most of their time left wherever several gateways
race for the same free slots: each of them learns of a free slot, one of them wins, and the others
have spent an attempt. See decision 021. Neighbours: `dispatch` (prefills) and `decode` use it.
"""

from __future__ import annotations

FREE_ROUNDS = 2
"""Attempts at each candidate before the pace applies."""
SHARE = 0.25
"""Part of the time since the first attempt that a later attempt waits."""
SHORTEST = 0.010
"""Seconds that a later attempt waits at least."""


def next_attempt(first: float, attempts: int, candidates: int, now: float) -> float:
    """Earliest time of the next attempt of a request, in seconds of the clock of `now`.

    Args:
        first: time of its first attempt.
        attempts: attempts so far, at least 1.
        candidates: instances it may ask.
        now: present time.
    """
    if attempts < FREE_ROUNDS * candidates:
        return now
    return now + max(SHORTEST, SHARE * (now - first))
