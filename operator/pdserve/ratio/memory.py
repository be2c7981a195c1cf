"""What one round of the loop hands to the next: pure updates of `LoopMemory`.

Kept small on purpose: whatever the cluster already says (counts, past changes) is not repeated
here, and losing all of it delays a decision by about one window.
"""

from __future__ import annotations

import math
from dataclasses import replace

from pdserve.ratio.bottleneck import Signals
from pdserve.ratio.types import DecisionInput, LoopMemory, LoopSettings

SMOOTHING = 0.2
"""Weight of the newest healthy round in the remembered compute share."""
MAX_PRESSURE = 4.0


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
