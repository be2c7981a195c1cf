"""Frontiers: the most decodes beside p prefills, by p. `capacity` counts rooms in them."""

from __future__ import annotations

FRONTIER_CAP = 64
"""Frontiers stop here: no leaf is asked for more instances of one role."""


def join(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    """The frontier of two sets of nodes together."""
    best = [0] * min(len(left) + len(right) - 1, FRONTIER_CAP + 1)
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            if i + j < len(best):
                best[i + j] = max(best[i + j], a + b)
    return tuple(best)
