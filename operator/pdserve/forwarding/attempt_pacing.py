"""When a refused request may ask again: pace, not number, bounds what it costs.

The first attempts are free: two at each candidate, and eight at most. Every later one waits a
quarter of the time that the request has been asking for, so the attempts of a request grow with the
logarithm of its time: F + 4 + log(T / 0.04 s) / log(1.25) for F free ones and T seconds, 41 for two
candidates and 30 s. More free attempts at many candidates help little where many gateways look for
the same few slots: each asks at random, and one in twenty is free at a load of 0.95.
A cap on the number would fail requests that have most of their time left wherever several gateways
race for the same free slots: each of them learns of a free slot, one of them wins, and the others
have spent an attempt. See decision 021. Neighbours: `dispatch` (prefills) and `decode` use it.
"""

from __future__ import annotations

FREE_ROUNDS = 2
"""Attempts at each candidate before the pace applies."""
MOST_FREE = 8
"""Attempts before the pace applies, however many candidates there are."""
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
    if attempts < min(FREE_ROUNDS * candidates, MOST_FREE):
        return now
    return now + max(SHORTEST, SHARE * (now - first))
