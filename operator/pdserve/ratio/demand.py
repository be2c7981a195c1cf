"""What clients ask, per request: tokens of prompts and answers, and what caches save.

Prompts are counted at arrival: those of completed requests are shorter where long ones miss their
deadline. Answers are known when they end, so a change to longer ones shows late; where decodes
make more tokens per answer that ends, that figure counts (for answers of exponential length it is
the maximum-likelihood mean under censoring). Each mean is of the longest window that does not
contradict the shorter ones, as `ratio.rate` reads the load.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pdserve.ratio.rate import CONTRADICTS, RateEstimate
from pdserve.ratio.types import (
    Demand,
    ExpectedTraffic,
    Quantity,
    RequestWindow,
    ScenarioSample,
    known,
)

ENOUGH_LENGTHS = 20_000.0
"""With this many requests no longer window is needed."""
LEAST_LENGTHS = 30.0
"""A shorter window with fewer requests is not read by itself."""
JUMPS = 4.5
"""Standard errors by which the newest lengths must lie above the rest: tails are heavy."""
LEAST_JUMP = 100.0
"""Requests of which the newest lengths must be."""
OUTPUT_CV = 1.0
"""Standard deviation of output lengths over their mean: not measured, as for exponential ones."""
DEFAULT_SPREAD = 1.25
"""E[L^2]/E[L]^2 while prefill has not published it."""
MAX_JUMP = 2.0
"""Most by which the newest scrapes raise a mean at once, as a factor."""

Total = tuple[float, float]
"""Requests of a window, and their tokens."""


def estimate_demand(
    sample: ScenarioSample,
    expected: ExpectedTraffic | None,
    rate: RateEstimate,
    spread: float | None = None,
) -> Demand | None:
    """Tokens per request at `rate.ahead` requests/s.

    From `expected` before anything completed; None where that is absent too. `spread`:
    E[L^2]/E[L]^2 of prompts, where it is known.
    """
    windows = sample.windows
    spread = DEFAULT_SPREAD if spread is None else spread
    completed = _totals(windows, "completed", "prompt_tokens")
    arrived = _totals(windows, "arrived", "arrived_tokens")
    answers = _totals(windows, "completed", "output_tokens")
    cv = math.sqrt(max(spread - 1.0, 0.1))
    prompt = _mean(arrived, cv) or _mean(completed, cv)
    output = _mean(answers, OUTPUT_CV)
    if prompt is None or output is None:
        return None if expected is None else expected_demand(expected, rate.ahead)
    hit = _hit(windows)
    recent = sample.recent
    if recent is not None:
        prompt = _raised(prompt, recent.arrived, recent.arrived_tokens, cv)
    uncached = prompt * (1.0 - hit)
    if recent is not None and hit > 0.0:
        uncached = min(
            _raised(uncached, recent.prefill_requests, recent.prefill_tokens, cv), prompt
        )
    if recent is not None and not rate.rising:
        output = _raised(output, recent.completed, recent.decode_tokens, OUTPUT_CV)
    return Demand(rate.ahead, prompt, uncached, uncached * uncached * spread, max(output, 1.0))


def expected_demand(expected: ExpectedTraffic, rate: float | None = None) -> Demand:
    """The demand that the service's owner announced.

    `rate`: requests per second; None: the announced one.
    """
    uncached = expected.prompt_tokens * (1.0 - expected.prefix_hit)
    return Demand(
        expected.requests_per_second if rate is None else rate,
        expected.prompt_tokens,
        uncached,
        uncached * uncached * DEFAULT_SPREAD,
        max(expected.output_tokens, 1.0),
    )


def _totals(windows: Sequence[RequestWindow], count: str, tokens: str) -> list[Total]:
    """Both counts of every window that has them and any request."""
    found = []
    for window in windows:
        requests: Quantity = getattr(window, count)
        total: Quantity = getattr(window, tokens)
        if known(requests) and known(total) and requests >= 1.0 and total > 0.0:
            found.append((requests, total))
    return found


def _mean(totals: Sequence[Total], cv: float) -> float | None:
    """Tokens per request; None without any. `cv`: of one request's tokens."""
    enough = [t for t in totals if t[0] >= LEAST_LENGTHS]
    if not enough:
        return totals[-1][1] / totals[-1][0] if totals else None
    count, total = enough[0]
    for longer, more in enough[1:]:
        if count >= ENOUGH_LENGTHS:
            break
        if longer - count < 1.0:
            continue
        mean, before = total / count, (more - total) / (longer - count)
        error = cv * mean * math.sqrt(1.0 / count + 1.0 / (longer - count))
        if abs(mean - before) > CONTRADICTS * error:
            break
        count, total = longer, more
    return total / count


def _raised(mean: float, count: Quantity, total: Quantity, cv: float) -> float:
    """The mean of the newest scrapes, where it is significantly above `mean`."""
    if not (known(count) and known(total)) or count < LEAST_JUMP:
        return mean
    newest = total / count
    # The scrapes behind these counts span about half of their time.
    error = cv * mean * math.sqrt(2.0 / count)
    return min(newest, mean * MAX_JUMP) if newest - mean > JUMPS * error else mean


def _hit(windows: Sequence[RequestWindow]) -> float:
    """Share of prompt tokens that came from a prefix cache, in the shortest telling window."""
    found = 0.0
    for window in windows:
        prompt, cached, count = window.prompt_tokens, window.cached_tokens, window.completed
        if known(prompt) and known(cached) and known(count) and prompt > 0.0:
            found = min(cached / prompt, 1.0)
            if count >= LEAST_LENGTHS:
                break
    return found
