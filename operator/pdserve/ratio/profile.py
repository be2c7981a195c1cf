"""What one instance of each role can do: times of a prefill batch and of a decode step, and slots.

`presets` has first guesses, `learn` fits the coefficients to what was measured, `model` and
`queueing` reckon with them. Durations are seconds, token counts are means per request.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

Triple = tuple[float, float, float]
Covariance = tuple[Triple, Triple, Triple]


@dataclass(frozen=True, slots=True)
class PrefillProfile:
    """Compute time of one prefill batch: `T_p = a + b*sum(L) + c*sum(L^2)` seconds.

    L is the number of prompt tokens that were not in the prefix cache.
    """

    base: float
    per_token: float
    per_token_squared: float
    covariance: Covariance | None = None
    """Of the three coefficients; None: they are taken as exact."""

    def batch_seconds(self, batch: int, tokens: float, tokens_squared: float) -> float:
        """T_p in seconds of a batch of `batch` requests.

        `tokens` and `tokens_squared`: mean of L and of L^2, L the uncached prompt tokens of a
        request.
        """
        return (
            self.base
            + self.per_token * batch * tokens
            + self.per_token_squared * batch * tokens_squared
        )

    def batch_error(self, batch: int, tokens: float, tokens_squared: float) -> float:
        """Standard error of `batch_seconds`, in seconds."""
        return _error(self.covariance, (1.0, batch * tokens, batch * tokens_squared))


@dataclass(frozen=True, slots=True)
class DecodeProfile:
    """Time of one decode step: `d + e*B + f*sum(context)` seconds at batch size B."""

    base: float
    per_request: float
    per_context_token: float
    covariance: Covariance | None = None
    """Of the three coefficients; None: they are taken as exact."""

    def step_seconds(self, batch: float, context: float) -> float:
        """Seconds of one step (one token for each request) at `batch` requests.

        `context`: mean tokens in a request's KV.
        """
        return self.base + batch * (self.per_request + self.per_context_token * context)

    def step_error(self, batch: float, context: float) -> float:
        """Standard error of `step_seconds`, in seconds."""
        return _error(self.covariance, (1.0, batch, batch * context))


def _error(covariance: Covariance | None, terms: Triple) -> float:
    """Standard error of a sum of coefficients times `terms`."""
    if covariance is None:
        return 0.0
    square = sum(x * y * covariance[i][j] for i, x in enumerate(terms) for j, y in enumerate(terms))
    return math.sqrt(max(square, 0.0))


@dataclass(frozen=True, slots=True)
class PerformanceProfile:
    """What one instance of each role can do, for one model on one device type."""

    prefill: PrefillProfile
    decode: DecodeProfile
    prefill_slots: int
    """b_p: requests a prefill instance accepts at once."""
    decode_slots: int
    """b_d: requests a decode instance runs at once."""
    source: str = "seed"
    """Where the coefficients come from: `preset:NAME`, `learned`, ..."""
    confidence: float = 0.0
    """0 = a guess; 1 = learned from many windows of this very service."""
    prompt_spread: float | None = None
    """E[L^2]/E[L]^2 of the prompts that were computed, smoothed; None before any."""
