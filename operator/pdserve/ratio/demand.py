"""What clients ask, estimated from growing windows of gateway counts.

A short window follows a step at once but is noisy; a long one is calm but late. `estimate` uses
the longest window that does not significantly contradict the shorter ones (Lepski's rule), so a
steady load is read calmly and a step within one short window. A rise that goes on over two
windows is carried forward over the dead time (half a window + cold start), with a cap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pdserve.ratio.types import (
    Demand,
    ExpectedTraffic,
    LoopSettings,
    PrefillWindow,
    RequestWindow,
    ScenarioSample,
    known,
)

ENOUGH_REQUESTS = 100.0
"""With this many, the rate's standard error is 10 %: no longer window is needed."""
ENOUGH_LENGTHS = 30.0
CONTRADICTS = 2.5
"""Standard errors between two windows from which on they are taken to differ."""
RISES = 1.64
"""Standard errors above the time before from which on the load counts as rising."""
MAX_FORECAST = 1.25
DEFAULT_SPREAD = 1.25
"""E[L^2]/E[L]^2 while prefill has not published it."""


@dataclass(frozen=True, slots=True)
class RateEstimate:
    """Offered requests per second, three ways."""

    now: float
    ahead: float
    """Expected when a change decided now would take effect; at least `now`."""
    high: float
    """Upper estimate over every window: what a reduction must still serve."""
    rising: bool
    """The shortest window shows significantly more than the time before it."""


def covered(windows: Sequence[RequestWindow]) -> tuple[RequestWindow, ...]:
    """Windows that are filled with samples: those reaching back before the first scrape are not.

    Judged by sample density against the shortest window, which is always kept.
    """
    if not windows or not known(windows[0].scrapes):
        return tuple(windows[:1])
    density = windows[0].scrapes / windows[0].seconds
    return (
        windows[0],
        *(w for w in windows[1:] if known(w.scrapes) and w.scrapes >= 0.8 * density * w.seconds),
    )


def estimate_rate(windows: Sequence[RequestWindow], settings: LoopSettings) -> RateEstimate | None:
    """The offered rate; None when the shortest window has no count."""
    counted = [(w.seconds, w.offered) for w in windows if known(w.offered)]
    if not counted or counted[0][0] != windows[0].seconds:
        return None
    now = _calm_rate(counted)
    high = max((n + 1.64 * math.sqrt(n)) / s for s, n in counted if s <= _recent(settings))
    lead = settings.window / 2 + settings.cold_start
    ahead = min(now + _climb(counted) * lead, now * MAX_FORECAST)
    return RateEstimate(now, ahead, max(high, now), _rising(counted))


def estimate_demand(
    sample: ScenarioSample, expected: ExpectedTraffic | None, rate: float
) -> Demand | None:
    """Tokens per request at `rate` requests/s, from the shortest window with enough replies.

    From `expected` before anything completed; None where that is absent too.
    """
    for window in _by_preference(sample.windows):
        completed, prompt = window.completed, window.prompt_tokens
        output, cached = window.output_tokens, window.cached_tokens
        if not (known(completed) and known(prompt) and known(output)) or completed < 1.0:
            continue
        hit = min(cached / prompt, 1.0) if known(cached) and prompt > 0 else 0.0
        return _demand(rate, prompt / completed, hit, output / completed, _spread(sample.prefill))
    return None if expected is None else expected_demand(expected, rate)


def expected_demand(expected: ExpectedTraffic, rate: float | None = None) -> Demand:
    """The demand that the service's owner announced.

    `rate`: requests per second; None: the announced one.
    """
    return _demand(
        expected.requests_per_second if rate is None else rate,
        expected.prompt_tokens,
        expected.prefix_hit,
        expected.output_tokens,
        DEFAULT_SPREAD,
    )


def _demand(rate: float, prompt: float, hit: float, output: float, spread: float) -> Demand:
    uncached = prompt * (1.0 - hit)
    return Demand(rate, prompt, uncached, uncached * uncached * spread, max(output, 1.0))


def _calm_rate(counted: Sequence[tuple[float, float]]) -> float:
    seconds, count = counted[0]
    for longer, total in counted[1:]:
        if count >= ENOUGH_REQUESTS:
            break
        earlier = _rate_before((seconds, count), (longer, total))
        error = math.sqrt(max(count, 1.0)) / seconds + math.sqrt(total) / longer
        if abs(count / seconds - earlier) > CONTRADICTS * error / math.sqrt(2.0):
            break
        seconds, count = longer, total
    return count / seconds


def _rate_before(short: tuple[float, float], longer: tuple[float, float]) -> float:
    """Rate over the part of the longer window that precedes the short one."""
    return max(longer[1] - short[1], 0.0) / (longer[0] - short[0])


def _rising(counted: Sequence[tuple[float, float]]) -> bool:
    if len(counted) < 2:
        return False
    (seconds, count), longer = counted[0], counted[1]
    before = _rate_before((seconds, count), longer)
    return count / seconds - before > RISES * math.sqrt(count) / seconds


def _climb(counted: Sequence[tuple[float, float]]) -> float:
    """Requests/s per second by which the rate rises steadily; 0 unless two windows agree."""
    if len(counted) < 3:
        return 0.0
    (w0, n0), (w1, n1), (w2, n2) = counted[:3]
    recent, middle = n0 / w0, _rate_before((w0, n0), (w1, n1))
    old, error = _rate_before((w1, n1), (w2, n2)), math.sqrt(n0) / w0
    if recent - middle < error or middle - old < error / 2:
        return 0.0
    late = (recent - middle) / (w1 / 2)
    early = (middle - old) / (w2 / 2)
    return min(late, early)


def _by_preference(windows: Sequence[RequestWindow]) -> list[RequestWindow]:
    """Shortest window with enough completed requests first, then longest first."""
    enough = [w for w in windows if known(w.completed) and w.completed >= ENOUGH_LENGTHS]
    return [*enough, *(w for w in reversed(windows) if w not in enough)]


def _spread(prefill: PrefillWindow) -> float:
    """E[L^2]/E[L]^2 as computed by prefill instances."""
    requests, tokens, squared = prefill.requests, prefill.tokens, prefill.tokens_squared
    if not (known(requests) and known(tokens) and known(squared)) or requests < 1 or tokens <= 0:
        return DEFAULT_SPREAD
    return min(max(squared * requests / (tokens * tokens), 1.0), 10.0)


def _recent(settings: LoopSettings) -> float:
    """Longest window that may hold back a reduction."""
    return max(settings.window, settings.shrink_dwell)
