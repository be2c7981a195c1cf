"""Prompts that a decode's engine computes itself, bounded by what they do to the answers beside.

The proxy does not see an engine's steps. It knows how many milliseconds a token of the streams took
that ended of late, and computes prompts one at a time: the next one is taken when the one before
has its first token, and while those streams were within their target. Pure; the clock is an
argument, in seconds.
"""

from __future__ import annotations

from typing import Final

MARGIN: Final = 0.95
"""Share of a TPOT target up to which streams may have come."""
WEIGHT: Final = 0.2
RECENT: Final = 10.0
"""Seconds after which what streams took says nothing any more."""


class LocalPrompts:
    """State of one decode."""

    def __init__(self) -> None:
        self.computing = 0
        """Prompts that have no first token yet."""
        self._tpot = 0.0
        self._at = float("-inf")

    def ended(self, first: float, last: float, tokens: int) -> None:
        """Note a stream: when its first and last token came, and how many there were."""
        if tokens > 1:
            seconds = (last - first) / (tokens - 1)
            old = last - self._at > RECENT
            self._tpot = seconds if old else self._tpot + WEIGHT * (seconds - self._tpot)
            self._at = last

    def too_slow(self, tpot: float | None, now: float) -> bool:
        """Whether a prompt must not be computed now, with `tpot` seconds a token as the target.

        None: streams are not looked at.
        """
        if tpot is None:
            return False
        recent = now - self._at <= RECENT
        return self.computing > 0 or (recent and self._tpot > MARGIN * tpot)
