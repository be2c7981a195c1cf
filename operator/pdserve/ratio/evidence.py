"""How sure the measurements are that a scenario misses its target.

Attainment over the offered requests of a window is a binomial sample. With a Beta prior around the
model's prediction, the posterior gives P(attainment < target); acting on the raw share raises
37 % false alarms at 15 samples. The prior is worth few requests, so measurements soon win.

What counts is the attainment that instances can change: requests that no idle prefill answers in
time are left out of both counts (`hopeless` says how many those are). A window tells something
from 300 requests on, or when it is 10 minutes long and has 30; below that the model decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pdserve.ratio.rate import arrivals
from pdserve.ratio.types import LoopSettings, RequestWindow, known

PRIOR_REQUESTS = 20.0
"""Weight of the model's prediction, in requests."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One window's verdict."""

    window: RequestWindow
    offered: float
    """Those that instances can help; above 0."""
    met: float
    below: float
    """P(attainment < target) under the posterior."""
    rate: float
    """Requests per second that arrived in the window."""

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
    """The verdict of the shortest window with enough requests.

    Usable: not longer than `usable_seconds` (time since the present counts took effect), with at
    least `min_scrapes` samples. None when no usable window has enough requests.
    """
    for window in windows:
        if window.seconds > usable_seconds or not _sampled(window, settings):
            continue
        offered = controllable(window)
        if offered is None or not known(window.met) or not _enough(window, offered, settings):
            continue
        # increase() extrapolates each series by itself, so `met` may exceed `offered` by a hair.
        met = min(window.met, offered)
        below = posterior_below(offered, met, target, predicted)
        arrived = arrivals(window)
        rate = (offered if arrived is None else arrived) / window.seconds
        return Evidence(window, offered, met, below, rate)
    return None


def controllable(window: RequestWindow) -> float | None:
    """Offered requests less those that no number of instances helps; None when not counted."""
    if not known(window.offered):
        return None
    lost = window.infeasible if known(window.infeasible) else 0.0
    return max(window.offered - lost, 0.0)


def hopeless(windows: Sequence[RequestWindow]) -> float:
    """Share (0 to 1) of offered requests that no idle prefill answers in time.

    Of the longest window that counts them.
    """
    for window in reversed(windows):
        offered, lost = window.offered, window.infeasible
        if known(offered) and known(lost) and offered > 0.0:
            return min(lost / offered, 1.0)
    return 0.0


def _enough(window: RequestWindow, offered: float, settings: LoopSettings) -> bool:
    if offered >= settings.evidence_requests:
        return True
    return window.seconds >= settings.evidence_seconds and offered >= settings.least_requests


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
