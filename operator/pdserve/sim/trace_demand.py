"""What a recorded trace asks in its busiest minutes, for sizing."""

from __future__ import annotations

import numpy as np

from pdserve.ratio.types import Demand
from pdserve.sim.shapes import TrafficShape


def busiest_demand(shape: TrafficShape, seconds: float) -> Demand:
    """The highest rate of any window of so many seconds, with the mean lengths of the whole trace.

    Windows begin at every request; a shorter trace is one window. `shape` has recorded requests.

    Raises:
        ValueError: it has none.
    """
    recorded = shape.recorded
    if recorded is None:
        raise ValueError(f"{shape.name}: not recorded")
    times, tokens = recorded.times, recorded.tokens.astype(np.float64)
    window = min(seconds, shape.duration)
    ends = np.searchsorted(times, times + window)
    most = int((ends - np.arange(len(times))).max())
    uncached = tokens[:, 0] - tokens[:, 1]
    return Demand(
        most / window,
        float(tokens[:, 0].mean()),
        float(uncached.mean()),
        float((uncached**2).mean()),
        max(float(tokens[:, 2].mean()), 1.0),
    )
