"""Offered requests per second now, and when a decision made now takes effect.

Counters at arrival over growing windows give disjoint parts of the past. In this order:

1. a line through the parts, where its slope is significant and it fits them: the load drifts;
2. else the longest window that does not contradict the shorter ones (Lepski's rule): the load is
   steady, or changed at one moment since when it is steady;
3. the newest scrapes alone, where they show significantly more than 1 or 2 did: a step. For as
   long as windows reach back beyond it, 1 is left out.

A load that rises is carried forward over the dead time (age of the samples + cold start), within a
cap. A load that falls is not: what goes away may come back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pdserve.ratio.types import LoopSettings, RecentWindow, RequestWindow, ScenarioSample, known

ENOUGH_REQUESTS = 20_000.0
"""With this many, the rate's standard error is 0.7 %: no longer window is needed."""
CONTRADICTS = 2.5
"""Standard errors between two parts from which on they are taken to differ."""
DRIFTS = 2.5
"""Standard errors of a slope from which on it counts."""
JUMPS = 3.3
"""Standard errors by which the newest scrapes must lie above the rest: 1 false step in 2000."""
FITS = 6.6
"""Largest chi-square of a line through three parts (1 degree of freedom, 1 %)."""
MAX_FORECAST = 1.5
"""Most by which a load that rises is carried forward, as a factor."""


@dataclass(frozen=True, slots=True)
class RateEstimate:
    """Offered requests per second, in the views that decisions need."""

    now: float
    ahead: float
    """Expected when a change decided now takes effect; at least `now`."""
    high: float
    """One standard error above `now`: what a reduction must still serve."""
    rising: bool
    """The load is significantly above what it was before."""
    falling: bool
    """It has drifted downwards, significantly, over all windows."""
    jumped: bool = False
    """The newest scrapes alone are above all others."""
    recurs: bool = False
    """`ahead` is of a step that is expected because the load made it before."""
    scheduled: bool = False
    """`ahead` is what a window by clock states."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Requests that arrived between two ages, in seconds before the sample."""

    newest: float
    oldest: float
    count: float

    @property
    def seconds(self) -> float:
        return self.oldest - self.newest

    @property
    def rate(self) -> float:
        return self.count / self.seconds

    @property
    def variance(self) -> float:
        return max(self.count, 1.0) / self.seconds**2


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


def arrivals(window: RequestWindow) -> float | None:
    """Requests that arrived in the window and that instances can help; None when not counted.

    Where gateways do not count arrivals (an older release), requests are counted as they end.
    """
    ended = None
    if known(window.offered):
        lost = window.infeasible if known(window.infeasible) else 0.0
        ended = max(window.offered - lost, 0.0)
    if not known(window.arrived):
        return ended
    return ended if ended is not None and window.arrived < 0.5 * ended else window.arrived


def estimate_rate(
    sample: ScenarioSample, settings: LoopSettings, jumped: float | None = None
) -> RateEstimate | None:
    """The rate; None when the shortest window has no count.

    `jumped`: seconds since the last step up, if there was one: over windows that reach back beyond
    it no line is drawn.
    """
    counted = [(w.seconds, n) for w in sample.windows if (n := arrivals(w)) is not None]
    if not counted or counted[0][0] != sample.windows[0].seconds:
        return None
    drifts = jumped is None or jumped > counted[-1][0]
    level, variance, slope = _level(counted, drifts)
    rising = slope > 0.0 or _above(_parts(counted))
    newest = _jump(sample.recent, level, variance)
    if newest is not None:
        level, variance, rising = newest, newest / _seen(sample.recent), True
    lead = sample.lag + settings.fast_period / 2 + settings.cold_start
    ahead = min(level + max(slope, 0.0) * lead, level * MAX_FORECAST)
    high = level + math.sqrt(variance)
    return RateEstimate(
        level, max(ahead, level), high, rising, slope < 0.0, jumped=newest is not None
    )


def _level(counted: Sequence[tuple[float, float]], drifts: bool) -> tuple[float, float, float]:
    """Rate at the end of the windows, its variance, and its slope in requests/s per second."""
    drift = _line(_parts(counted)) if drifts else None
    if drift is not None:
        return drift
    seconds, count = counted[0]
    for longer, total in counted[1:]:
        if count >= ENOUGH_REQUESTS:
            break
        earlier = _Part(seconds, longer, max(total - count, 0.0))
        recent = _Part(0.0, seconds, count)
        error = math.sqrt(recent.variance + earlier.variance)
        if abs(recent.rate - earlier.rate) > CONTRADICTS * error:
            break
        seconds, count = longer, total
    return count / seconds, max(count, 1.0) / seconds**2, 0.0


def _parts(counted: Sequence[tuple[float, float]]) -> list[_Part]:
    """The windows as disjoint parts, newest first."""
    parts, before = [], (0.0, 0.0)
    for seconds, count in counted:
        parts.append(_Part(before[0], seconds, max(count - before[1], 0.0)))
        before = (seconds, count)
    return parts


def _above(parts: Sequence[_Part]) -> bool:
    """Whether the newest part lies significantly above the one before."""
    if len(parts) < 2:
        return False
    error = math.sqrt(parts[0].variance + parts[1].variance)
    return parts[0].rate - parts[1].rate > CONTRADICTS * error


def _line(parts: Sequence[_Part]) -> tuple[float, float, float] | None:
    """Weighted least squares of rate against age: value and variance at age 0, and slope.

    None where there are fewer than three parts, the slope is not significant, or the line does not
    fit.
    """
    if len(parts) < 3:
        return None
    weights = [1.0 / p.variance for p in parts]
    ages = [(p.newest + p.oldest) / 2 for p in parts]
    whole = sum(weights)
    age = sum(w * a for w, a in zip(weights, ages, strict=True)) / whole
    mean = sum(w * p.rate for w, p in zip(weights, parts, strict=True)) / whole
    spread = sum(w * (a - age) ** 2 for w, a in zip(weights, ages, strict=True))
    products = zip(weights, ages, parts, strict=True)
    slope = -sum(w * (a - age) * p.rate for w, a, p in products) / spread
    if slope**2 * spread < DRIFTS**2:
        return None
    rest = zip(weights, ages, parts, strict=True)
    misfit = sum(w * (p.rate - mean - slope * (age - a)) ** 2 for w, a, p in rest)
    if misfit > FITS:
        return None
    value = mean + slope * age
    if slope < 0.0:
        # A step down long ago looks like a fall that goes on.
        value = max(value, (parts[0].count + parts[1].count) / parts[1].oldest)
    return value, 1.0 / whole + age**2 / spread, slope


def _jump(recent: RecentWindow | None, level: float, variance: float) -> float | None:
    """The rate of the newest scrapes, where it is significantly above `level`."""
    if recent is None or not known(recent.arrived) or recent.arrived < 5.0:
        return None
    rate = recent.arrived / recent.seconds
    error = math.sqrt(max(level, 1.0 / recent.seconds) / _seen(recent) + variance)
    return rate if rate - level > JUMPS * error else None


def _seen(recent: RecentWindow | None) -> float:
    """Seconds between the samples of that window: `increase` extends them to all of it."""
    return 1.0 if recent is None else recent.seconds / 2
