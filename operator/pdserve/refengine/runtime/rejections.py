"""Refusals for lack of room or time, counted as they are made."""

from __future__ import annotations

import math

from pdserve.engines.instance_answers import RejectedError
from pdserve.refengine.metrics import EngineMetrics
from pdserve.wire import calls


class Rejections:
    """Makes the errors; the caller raises or sends them."""

    def __init__(self, metrics: EngineMetrics) -> None:
        self._metrics = metrics

    def reject(self, reason: str, message: str, status: int = 503) -> RejectedError:
        """Count a rejection; `reason` is one of `wire.calls.REJECT_*`."""
        self._metrics.rejected(reason)
        return RejectedError(reason, message, status)

    def too_late(self, needed: float, left: float) -> RejectedError:
        """Count a rejection for the deadline; both arguments in seconds."""
        needed_ms, left_ms = max(1, math.ceil(needed * 1000)), max(0, int(left * 1000))
        error = self.reject(calls.REJECT_DEADLINE, f"needs {needed_ms} ms, {left_ms} ms are left")
        times = ((calls.HEADER_NEEDED_MS, needed_ms), (calls.HEADER_LEFT_MS, left_ms))
        error.headers += tuple((name.encode(), b"%d" % value) for name, value in times)
        return error
