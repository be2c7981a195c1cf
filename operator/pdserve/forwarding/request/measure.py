"""What one offered request amounted to, and whether it met its scenario's targets.

TTFT: request head received -> first non-empty content delta written to the client. Handoff:
token 2 - token 1. TPOT: (last token - token 2) / (tokens - 2), from three tokens on, with tokens
from usage. A reply that is not streamed shows no token to the client: there token 1 is the
prefill's reply, TPOT is the mean over all later tokens, handoff is part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from pdserve.terms import Slo

Outcome = Literal["completed", "expired", "decode_overload", "failed", "cancelled_late"]
Stage = Literal["arrival", "before_prefill", "after_prefill"]
"""Where a deadline passed."""
LocalResult = Literal["served", "refused", "failed"]
OUTCOMES: tuple[Outcome, ...] = (
    "completed", "expired", "decode_overload", "failed", "cancelled_late",
)  # fmt: skip


@dataclass(slots=True)
class Timeline:
    """Instants of one request on one clock, in seconds; None: it did not happen."""

    arrived: float
    streamed: bool
    first: float | None = None
    second: float | None = None
    last: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    expected_cached: int = 0
    """Prompt tokens that the prefix index expected in the cache of the prefill."""
    output_tokens: int = 0
    """As an engine reported; 0: none did, as for a stream that its client did not read to its end.
    """
    events: int = 0
    """Events of streams; each but a few has a token or more."""

    @property
    def generated(self) -> int:
        """Output tokens, at least as far as they were seen; 0 or more, whatever an engine says."""
        return max(0, self.output_tokens or self.events)

    @property
    def ttft(self) -> float | None:
        """Seconds from arrival to token 1; None before it."""
        return None if self.first is None else self.first - self.arrived

    @property
    def handoff(self) -> float | None:
        """Seconds between tokens 1 and 2; None when not seen, as in replies sent whole."""
        if self.first is None or self.second is None:
            return None
        return self.second - self.first

    @property
    def tpot(self) -> float | None:
        """Mean seconds per token after the handoff; None with too few tokens.

        Of a reply sent whole: per token after the first.
        """
        start, before = (self.second, 2) if self.streamed else (self.first, 1)
        if start is None or self.last is None or self.output_tokens <= before:
            return None
        return (self.last - start) / (self.output_tokens - before)


class SloVerdict(NamedTuple):
    """Which targets an offered request met; `all` is what attainment counts."""

    ttft: bool
    handoff: bool
    tpot: bool
    all: bool


def judge(timeline: Timeline, outcome: Outcome, slo: Slo) -> SloVerdict:
    """Compare with the targets.

    A phase that a completed request did not have (one token: no handoff) counts as met; in any
    other request it counts as missed.
    """
    completed = outcome == "completed"
    ttft = _met(timeline.ttft, slo.ttft, completed)
    handoff = _met(timeline.handoff, slo.handoff, completed)
    tpot = _met(timeline.tpot, slo.tpot, completed)
    return SloVerdict(ttft, handoff, tpot, completed and ttft and handoff and tpot)


def _met(seconds: float | None, target: float, without: bool) -> bool:
    return without if seconds is None else seconds <= target
