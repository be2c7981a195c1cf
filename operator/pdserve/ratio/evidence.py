"""How sure the measurements are that a scenario misses its target.

Attainment over the offered requests of a window is a binomial sample. With a Beta prior around the
model's prediction, the posterior gives P(attainment < target); acting on the raw share raises
37 % false alarms at 15 samples. The prior is worth few requests, so measurements soon win.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pdserve.ratio.types import LoopSettings, RequestWindow, known

PRIOR_REQUESTS = 20.0
"""Weight of the model's prediction, in requests."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One window's verdict."""

    window: RequestWindow
    offered: float
    """Above 0."""
    met: float
    below: float
    """P(attainment < target) under the posterior."""

    @property
    def attainment(self) -> float:
        """Measured share."""
        return self.met / self.offered


def weigh(
    windows: Sequence[RequestWindow],
    usable_seconds: float,
    target: float,
    predicted: float,
    settings: LoopSettings,
) -> Evidence | None:
    """The verdict of the shortest window with enough requests, else of the longest usable one.

    Usable: not longer than `usable_seconds` (time since the present counts took effect), with at
    least `min_scrapes` samples. None when no window is usable or nothing was offered.
    """
    best: Evidence | None = None
    for window in windows:
        if window.seconds > usable_seconds or not _sampled(window, settings):
            continue
        offered, met = window.offered, window.met
        if not known(offered) or not known(met) or offered <= 0.0:
            continue
        # increase() extrapolates each series by itself, so `met` may exceed `offered` by a hair.
        met = min(met, offered)
        best = Evidence(window, offered, met, posterior_below(offered, met, target, predicted))
        if offered >= settings.evidence_requests:
            break
    return best


def posterior_below(offered: float, met: float, target: float, predicted: float) -> float:
    """P(attainment < target) given `met` of `offered` requests and a Beta prior around `predicted`.

    `target` and `predicted` are shares of 0 to 1; the prior weighs PRIOR_REQUESTS.
    """
    prior = min(max(predicted, 0.02), 0.998)
    alpha = met + PRIOR_REQUESTS * prior
    beta = (offered - met) + PRIOR_REQUESTS * (1.0 - prior)
    return beta_cdf(alpha, beta, target)


def beta_cdf(alpha: float, beta: float, x: float) -> float:
    """Regularised incomplete beta function I_x(alpha, beta), by Lentz's continued fraction.

    `alpha` and `beta` above 0; 0 for x <= 0 and 1 for x >= 1. To about 1e-12.
    """
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    if x > (alpha + 1.0) / (alpha + beta + 2.0):
        return 1.0 - beta_cdf(beta, alpha, 1.0 - x)
    front = math.exp(
        math.lgamma(alpha + beta)
        - math.lgamma(alpha)
        - math.lgamma(beta)
        + alpha * math.log(x)
        + beta * math.log1p(-x)
    )
    return min(1.0, front * _fraction(alpha, beta, x) / alpha)


def _fraction(alpha: float, beta: float, x: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1.0 - (alpha + beta) * x / (alpha + 1.0)
    d = 1.0 / (d if abs(d) > tiny else tiny)
    value = d
    for m in range(1, 400):
        even = m * (beta - m) * x / ((alpha + 2 * m - 1) * (alpha + 2 * m))
        odd = -(alpha + m) * (alpha + beta + m) * x / ((alpha + 2 * m) * (alpha + 2 * m + 1))
        step = 1.0
        for term in (even, odd):
            d = 1.0 + term * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + term / c
            c = c if abs(c) > tiny else tiny
            step = c * d
            value *= step
        if abs(step - 1.0) < 1e-12:
            break
    return value


def _sampled(window: RequestWindow, settings: LoopSettings) -> bool:
    return known(window.scrapes) and window.scrapes >= settings.min_scrapes
