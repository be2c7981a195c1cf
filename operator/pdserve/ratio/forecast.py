"""How wrong forecasts over the dead time were: the margin that counts are given.

As a warehouse keeps a safety stock in proportion to the error of its forecast over the time that an
order takes: once a period the load that is expected when a new instance would serve is noted, and
compared with the load at that time. A steady load gets almost no margin, a restless one more.
"""

from __future__ import annotations

import math
from dataclasses import replace

from pdserve.ratio.model import PerformanceModel
from pdserve.ratio.rate import RateEstimate
from pdserve.ratio.types import DecisionInput, Forecast, LoopMemory

LEARN = 0.1
"""Weight of the newest error, one a period: a memory of about ten."""
MAX_ERROR = 0.25
"""A step is not what comes all the time: larger errors count as this."""


def remember_forecast(
    memory: LoopMemory, inp: DecisionInput, model: PerformanceModel, rate: RateEstimate, lag: float
) -> LoopMemory:
    """Memory with errors of forecasts that are due, and with a new forecast once a period.

    `model`: without pressure. `lag`: age of the samples, in seconds.
    """
    capacity_p, capacity_d = model.prefill.capacity, model.decode.capacity
    if capacity_p <= 0.0 or capacity_d <= 0.0:
        return memory
    settings, now = inp.settings, inp.now
    due = [f for f in memory.forecasts if f.due <= now]
    waiting = tuple(f for f in memory.forecasts if f.due > now)
    lead = lag + settings.cold_start
    newest = waiting[-1].due - lead if waiting else -math.inf
    if now - newest >= settings.control_period or newest > now:
        ahead = Forecast(now + lead, rate.ahead / capacity_p, rate.ahead / capacity_d)
        waiting = (*waiting, ahead)
    if rate.jumped and waiting:
        # One error for a step, not one for each forecast that it made wrong.
        due, waiting = [*due, waiting[0]], ()
    prefill, decode = memory.error_prefill, memory.error_decode
    for past in due:
        prefill = _blended(prefill, past.prefill, rate.now / capacity_p)
        decode = _blended(decode, past.decode, rate.now / capacity_d)
    return replace(memory, forecasts=waiting, error_prefill=prefill, error_decode=decode)


def _blended(before: float, forecast: float, found: float) -> float:
    """Root of the smoothed squares of relative errors."""
    if forecast <= 0.0:
        return before
    error = min(abs(found / forecast - 1.0), MAX_ERROR)
    return math.sqrt((1.0 - LEARN) * before * before + LEARN * error * error)
