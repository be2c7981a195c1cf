"""What one round of the loop hands to the next: pure updates of `LoopMemory`.

Kept small on purpose: whatever the cluster already says (counts, past changes) is not repeated
here, and losing all of it delays a decision by about one window.
"""

from __future__ import annotations

import math
from dataclasses import replace

from pdserve.ratio.bottleneck import Signals
from pdserve.ratio.types import DecisionInput, LoopMemory, LoopSettings, Need

SMOOTHING = 0.2
"""Weight of the newest healthy round in the remembered compute share."""
MAX_PRESSURE = 4.0
MIN_PRESSURE = 0.25
REGRET = 2.0
"""Confirmation times within which growth after a reduction means that it came too soon."""
MAX_PATIENCE = 8.0
GAP = 5.0
"""Rounds without a point after which the needs before tell nothing of the time between."""


def observe_readiness(inp: DecisionInput) -> LoopMemory:
    """Memory with the time since which every wanted instance is ready, and with faded pressure."""
    memory, now = _fade(inp.memory, inp.now, inp.settings), inp.now
    complete = inp.ready_prefill == inp.current.total(
        "prefill"
    ) and inp.ready_decode == inp.current.total("decode")
    if not complete:
        since = now if memory.unready_since is None else memory.unready_since
        return replace(memory, unready_since=since, settled_at=None, settled_counts=None)
    if memory.settled_at is None or memory.settled_counts != inp.current:
        memory = replace(memory, settled_at=now, settled_counts=inp.current)
    return replace(memory, unready_since=None)


def remember_health(memory: LoopMemory, signals: Signals) -> LoopMemory:
    """Memory with the compute share (0 to 1) of a round that met its target blended in."""
    share, compute = signals.share, signals.compute
    if share is None or compute is None:
        return memory
    if memory.base_share is None or memory.base_compute is None:
        return replace(memory, base_share=share, base_compute=compute)
    return replace(
        memory,
        base_share=memory.base_share + SMOOTHING * (share - memory.base_share),
        base_compute=memory.base_compute + SMOOTHING * (compute - memory.base_compute),
    )


def remember_need(memory: LoopMemory, need: Need, settings: LoopSettings) -> LoopMemory:
    """Memory with the need of this round: one point a minute (its maximum), for one cycle.

    One older point stays, so that it is known whether the points reach back a whole cycle.
    """
    points = list(memory.needs)
    if points and not 0.0 <= need.time - points[-1].time <= _reach(settings):
        points = []
    if points and need.time - points[-1].time < settings.control_period:
        last = points[-1]
        need = Need(last.time, max(last.prefill, need.prefill), max(last.decode, need.decode))
        points.pop()
    points.append(need)
    oldest = need.time - settings.cycle * memory.patience - settings.control_period
    while len(points) > 1 and points[1].time <= oldest:
        points.pop(0)
    return replace(memory, needs=tuple(points))


def shrunk(memory: LoopMemory, now: float, settings: LoopSettings) -> LoopMemory:
    """Memory after a reduction; a long time without one that was regretted halves patience."""
    calm = (
        memory.shrunk_at is not None
        and now - memory.shrunk_at > REGRET * settings.shrink_dwell * memory.patience
    )
    patience = max(memory.patience / 2, 1.0) if calm else memory.patience
    return replace(memory, shrunk_at=now, patience=patience)


def grown(memory: LoopMemory, now: float, settings: LoopSettings) -> LoopMemory:
    """Memory after growth; soon after a reduction it shows that the load came back."""
    if memory.shrunk_at is None:
        return memory
    soon = now - memory.shrunk_at <= REGRET * settings.shrink_dwell * memory.patience
    patience = min(memory.patience * 2, MAX_PATIENCE) if soon else memory.patience
    return replace(memory, shrunk_at=None, patience=patience)


def _reach(settings: LoopSettings) -> float:
    """Longest time between two points of one history."""
    return settings.control_period + GAP * settings.fast_period


def _fade(memory: LoopMemory, now: float, settings: LoopSettings) -> LoopMemory:
    if memory.pressure_at is None:
        return replace(memory, pressure_at=now)
    keep = math.exp(-max(now - memory.pressure_at, 0.0) / settings.pressure_fade)
    return replace(
        memory,
        pressure_prefill=1.0 + (memory.pressure_prefill - 1.0) * keep,
        pressure_decode=1.0 + (memory.pressure_decode - 1.0) * keep,
        pressure_at=now,
    )
