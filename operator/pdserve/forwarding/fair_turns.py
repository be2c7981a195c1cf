"""Turns by client: who was served less than its equal share of late goes first.

While more requests come than prefills can take, the order of deadlines serves clients in proportion
to what they ask: one that floods the gateway leaves little for all others. Here a request goes
ahead of its deadline's turn by a part of the TTFT target: none of it for a client that had an equal
share of the tokens of the last seconds, all of it for one that had `FULL_AT` less. While all can be
served, they are, whatever their turns: then no client loses anything.

What counts is what a request costs: prompt tokens that were computed, and output tokens twice, as
in "Fairness in Serving Large Language Models" (Sheng et al., OSDI 2024, w_p = 1, w_q = 2). Older
tokens fade. A client that stays away saves nothing up: it is forgotten.

Sheddable requests (`service_tier: flex`) come after all others of the same time, and are the first
to go when the room is full. Clock as an argument; no I/O. Neighbour: `dispatch` orders by `rank`.
"""

from __future__ import annotations

from math import exp
from typing import Final, NamedTuple

WINDOW: Final = 10.0
"""Seconds after which tokens count a third, and a client that sends nothing no more."""
FULL_AT: Final = 0.25
"""Part of an equal share that a client lacks when its requests go ahead as far as they can."""
OUTPUT_WEIGHT: Final = 2.0
_OLDEST: Final = 14.0
"""Windows after which all counts are brought to the present."""


class Turn(NamedTuple):
    """Whose request it is, and of which class."""

    client: bytes = b""
    """Stands for its API key; empty: none, all such clients are one."""
    sheddable: bool = False


NO_CLIENT = Turn()


class FairTurns:
    """Tokens of late by client, in one scenario and process."""

    def __init__(self) -> None:
        self._tokens: dict[bytes, float] = {}
        """By client, in units that grow with time: older ones fade without being touched."""
        self._total = 0.0
        self._seen: dict[bytes, float] = {}
        """Last request of each client, the oldest first."""
        self._since = 0.0

    @property
    def clients(self) -> int:
        """How many sent requests of late."""
        return len(self._seen)

    def rank(self, turn: Turn, deadline: float, target: float, now: float) -> float:
        """The turn of a request that comes now; less is earlier, and none is after `deadline`.

        `target`: the TTFT target; all in seconds, on one clock.
        """
        ahead = self._ahead(turn.client, now)
        return deadline if turn.sheddable else deadline - target * (1.0 + ahead)

    def prefilled(self, turn: Turn, tokens: int, now: float) -> None:
        """Count prompt tokens that were computed for a client."""
        self._add(turn.client, max(0, tokens), now)

    def generated(self, turn: Turn, tokens: int, now: float) -> None:
        """Count output tokens of a client."""
        self._add(turn.client, OUTPUT_WEIGHT * max(0, tokens), now)

    def _ahead(self, client: bytes, now: float) -> float:
        """0: it had its share; 1: it lacks `FULL_AT` of it, or more."""
        seen = self._seen
        seen.pop(client, None)
        seen[client] = now
        while (oldest := next(iter(seen))) != client and seen[oldest] < now - WINDOW:
            del seen[oldest]
            self._total -= self._tokens.pop(oldest, 0.0)
        if len(seen) < 2 or self._total <= 0.0:
            return 0.0
        lacks = 1.0 - self._tokens.get(client, 0.0) * len(seen) / self._total
        return min(1.0, max(0.0, lacks / FULL_AT))

    def _add(self, client: bytes, tokens: float, now: float) -> None:
        if client not in self._seen:
            return  # gone meanwhile
        age = (now - self._since) / WINDOW
        if age > _OLDEST:
            faded = exp(-age)
            self._tokens = {c: t * faded for c, t in self._tokens.items()}
            self._total, self._since, age = sum(self._tokens.values()), now, 0.0
        unit = exp(age)
        self._tokens[client] = self._tokens.get(client, 0.0) + tokens * unit
        self._total += tokens * unit
