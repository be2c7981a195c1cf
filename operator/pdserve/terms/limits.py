"""Limits of requests, tokens and concurrency: of a scenario or of one API key.

Both name the same three amounts, in the words of the OpenAI API's own limits. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pdserve.terms.json import JsonObject

MAX_LIMIT: Final = 1_000_000_000
"""Of each amount."""
REQUESTS: Final = "requestsPerMinute"
TOKENS: Final = "tokensPerMinute"
CONCURRENT: Final = "concurrentRequests"
AMOUNTS: Final = (REQUESTS, TOKENS, CONCURRENT)


@dataclass(frozen=True, slots=True)
class UsageLimits:
    """The most that is served; 0: not limited."""

    requests: int = 0
    """Requests a minute."""
    tokens: int = 0
    """Tokens of prompts and answers a minute."""
    concurrent: int = 0
    """Requests in progress at once."""

    def __bool__(self) -> bool:
        """Whether anything is limited."""
        return bool(self.requests or self.tokens or self.concurrent)

    @staticmethod
    def of(amounts: Mapping[str, int]) -> UsageLimits:
        """Limits by the names in AMOUNTS; an amount that is not named is not limited."""
        return UsageLimits(*(amounts.get(name, 0) for name in AMOUNTS))

    def to_json(self) -> JsonObject:
        """Plain JSON value: the amounts that are limited, by name."""
        amounts = zip(AMOUNTS, (self.requests, self.tokens, self.concurrent), strict=True)
        return {name: amount for name, amount in amounts if amount}

    def tighter(self, other: UsageLimits) -> UsageLimits:
        """The lower of both in each amount."""
        mine = (self.requests, self.tokens, self.concurrent)
        theirs = (other.requests, other.tokens, other.concurrent)
        pairs = zip(mine, theirs, strict=True)
        return UsageLimits(*(min(a, b) if a and b else a or b for a, b in pairs))


NO_LIMITS: Final = UsageLimits()
