"""Instances that do prefill and decode both, for the question whether splitting pays.

Mixed batches with chunked prefill (Sarathi-Serve, arXiv 2403.02310): each step takes TPOT, of which
a share computes a piece of one prompt and the rest decodes. Prompts wait for that share
(`ratio.queueing`), and the streams of an instance are limited by what it leaves. The share is the
best of those tried. A chunk costs what its tokens cost in a prefill batch, without the batch's
constant: the weights are read for the step anyway. This is a model alone: `pdserve.sim` has no
plant of such instances.
"""

from __future__ import annotations

from pdserve.ratio.profile import PerformanceProfile
from pdserve.ratio.queueing import wait_exceeds
from pdserve.ratio.types import Demand
from pdserve.terms import Slo

SHARES = tuple(step / 40 for step in range(1, 38))
"""Shares of a step that prefill gets."""


def unsplit_misses(
    profile: PerformanceProfile, demand: Demand, slo: Slo, instances: int, share: float
) -> float:
    """Share of requests (0 to 1) that miss TTFT or TPOT; `share` of each step is for prefill."""
    pre, dec = profile.prefill, profile.decode
    work = pre.per_token * demand.uncached_tokens + pre.per_token_squared * demand.uncached_squared
    seconds = max(work / share, slo.tpot)
    each = dec.per_request + dec.per_context_token * demand.context_tokens
    room = slo.tpot * (1.0 - share) - dec.base
    streams = min(int(room / each) if each > 0 else profile.decode_slots, profile.decode_slots)
    if streams < 1 or seconds > slo.ttft:
        return 1.0
    late = wait_exceeds(instances, demand.rate * seconds, slo.ttft / seconds - 1.0)
    hold = max(demand.output_tokens - 1.0, 1.0) * slo.tpot
    return min(
        late + wait_exceeds(streams * instances, demand.rate * hold, slo.handoff / hold), 1.0
    )


def unsplit_instances(
    profile: PerformanceProfile, demand: Demand, slo: Slo, most: int
) -> int | None:
    """Fewest unsplit instances that meet the SLO; None where `most` do not."""

    def meets(instances: int) -> bool:
        allowed = 1.0 - slo.attainment
        return any(
            unsplit_misses(profile, demand, slo, instances, share) <= allowed for share in SHARES
        )

    if not meets(most):
        return None
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        if meets(middle):
            high = middle
        else:
            low = middle + 1
    return low
