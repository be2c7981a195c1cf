"""What one instance of each role can do: times of a prefill batch and of a decode step, and slots.

`presets` has first guesses, `learn` fits the coefficients to what was measured, `model` and
`queueing` reckon with them. Durations are seconds, token counts are means per request.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PrefillProfile:
    """Compute time of one prefill batch: `T_p = a + b*sum(L) + c*sum(L^2)` seconds.

    L is the number of prompt tokens that were not in the prefix cache.
    """

    base: float
    per_token: float
    per_token_squared: float

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


@dataclass(frozen=True, slots=True)
class DecodeProfile:
    """Time of one decode step: `d + e*B + f*sum(context)` seconds at batch size B."""

    base: float
    per_request: float
    per_context_token: float

    def step_seconds(self, batch: float, context: float) -> float:
        """Seconds of one step (one token for each request) at `batch` requests.

        `context`: mean tokens in a request's KV.
        """
        return self.base + batch * (self.per_request + self.per_context_token * context)


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
