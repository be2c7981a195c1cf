"""Loads that come back: a level that was followed by a higher one is expected to be so again.

The load is read as a sequence of levels with steps between them. While it is at a level that it had
before, the step that ended it last time is expected after as long as it lasted then, and instances
for the level behind it are started so that they serve a little earlier. It is given up when the
step does not come in time.

Only steps count: a load that drifts has no levels, and what was remembered is dropped. A step is
prepared for only where that costs less than the higher level itself, and while no more of the last
expectations failed than came true; those that are not acted on are checked too.

1 Note the rate of the last minute. 2 Has it left the level? By a step: the level ends, and what was
expected of it is judged. By a drift: forget all. 3 What does the level before it say?
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pdserve.ratio.types import Levels, LoadLevel, LoopSettings

MOVED = 0.25
"""Share of a level's rate by which the last minute's must differ from it."""
SURE = 4.0
"""Standard errors by which it must differ."""
SHARP = 0.6
"""Part of the change that must have come within the last `RECALL` seconds: else it is a drift."""
RECALL = 75.0
"""Seconds for which the rates of minutes are kept."""
SAME = 0.1
"""Relative difference up to which two levels are the same."""
EARLY = 0.15
"""Part of a level's length by which its end may be missed, both ways, before any was foreseen."""
LEAST_EARLY = 45.0
"""Seconds by which it may be missed at least: a step is dated by the scrapes around it."""
KEPT = 3
"""Levels that are remembered: the present one, a higher one, and one like the present."""
MOST = 3
"""Largest count of failures over successes, or the other way round."""


@dataclass(frozen=True, slots=True)
class ExpectedStep:
    """A step up that came before, and is due again."""

    rate: float
    """Requests per second behind it."""
    at: float
    early: float
    """Seconds by which it may come earlier or later."""


def observe(levels: Levels, now: float, rate: float, seconds: float) -> Levels:
    """The levels after a minute at `rate` requests/s, measured over the last `seconds`."""
    if levels.minutes and not 0.0 <= now - levels.minutes[-1][0] <= RECALL:
        levels = Levels()
    before = tuple(point for point in levels.minutes if now - point[0] <= RECALL)
    if levels.minutes and now - levels.minutes[-1][0] < seconds / 6:
        return levels
    levels = replace(levels, minutes=(*before, (now, rate)))
    if not levels.past:
        return replace(levels, past=(LoadLevel(now - seconds, rate),))
    level = levels.past[-1]
    if now - level.since < 1.25 * seconds:
        return _with_last(levels, replace(level, rate=rate))
    error = math.sqrt(max(level.rate, 1.0 / seconds) / seconds)
    if abs(rate - level.rate) > max(MOVED * level.rate, SURE * error):
        return _stepped(levels, now, rate, seconds)
    # A slow mean: what drifts away from it is noticed.
    return _with_last(levels, replace(level, rate=level.rate + 0.02 * (rate - level.rate)))


def expected(levels: Levels) -> ExpectedStep | None:
    """The step up that is expected next; None where none is."""
    found = _precedent(levels.past)
    if found is None:
        return None
    length, rate, _ = found
    early = max(EARLY * length, LEAST_EARLY)
    if levels.proved:
        early = min(early, max(2.0 * levels.missed_by, LEAST_EARLY))
    return ExpectedStep(rate, levels.past[-1].since + length, early)


def ahead(levels: Levels, now: float, settings: LoopSettings, lag: float) -> float | None:
    """Requests per second to be ready for now because of it; None where there are none.

    From one dead time before the step may come until it is overdue.
    """
    step, found = expected(levels), _precedent(levels.past)
    if step is None or found is None or levels.failed > levels.proved:
        return None
    lead = lag + settings.fast_period + settings.cold_start
    if found[2] < lead + 2.0 * step.early:
        return None
    return step.rate if step.at - step.early - lead <= now <= step.at + step.early else None


def _stepped(levels: Levels, now: float, rate: float, seconds: float) -> Levels:
    """The level ended: by a step, or the load drifts and has none."""
    level = levels.past[-1]
    if abs(rate - levels.minutes[0][1]) < SHARP * abs(rate - level.rate):
        return Levels(minutes=levels.minutes)
    levels = _judged(levels, now, rate)
    past = (*levels.past, LoadLevel(now - seconds / 2, rate))[-KEPT:]
    return replace(levels, past=past)


def _judged(levels: Levels, now: float, rate: float) -> Levels:
    """Note whether the step that was expected of the level that ends came as it was expected."""
    step = expected(levels)
    if step is None:
        return levels
    came = abs(now - step.at) <= 1.5 * step.early and rate > levels.past[-1].rate
    score = levels.proved - levels.failed + (1 if came else -1)
    score = max(-MOST, min(MOST, score))
    off = min(abs(now - step.at), step.early)
    return replace(levels, proved=max(score, 0), failed=max(-score, 0), missed_by=off)


def _precedent(past: Sequence[LoadLevel]) -> tuple[float, float, float] | None:
    """Length of the level before the last, the rate of the last, and how long that lasted.

    None where the present level is not like the one before the last, or the last was not higher.
    """
    if len(past) < 3:
        return None
    before, last, here = past[-3:]
    if abs(before.rate - here.rate) > SAME * here.rate or last.rate <= here.rate:
        return None
    return last.since - before.since, last.rate, here.since - last.since


def _with_last(levels: Levels, level: LoadLevel) -> Levels:
    return replace(levels, past=(*levels.past[:-1], level))
