"""Shrinking: one step, only when the prediction at the smaller size still holds with margin.

Without a profile nothing can be predicted; then only the absence of all traffic is proof enough,
and the step goes to the smallest counts at once.
"""

from __future__ import annotations

from pdserve.ratio.choose import smaller
from pdserve.ratio.round import Proposal, Round
from pdserve.ratio.types import Counts, Reason, known


def propose_surplus(round_: Round) -> Proposal | None:
    """The step down that frees most devices; None when none is safe.

    Safe: the load is not rising, measured attainment meets the target, and the highest rate of
    every recent window, raised by the margin, keeps predicted misses within half of what the SLO
    allows. Order among safe steps: most devices freed, highest predicted attainment, then fewest
    (groups, prefill, decode).
    """
    predict, rate = round_.predict, round_.rate
    if predict is None:
        return _idle(round_)
    if rate is None or rate.rising or not _healthy(round_):
        return None
    stress = round_.shrink_stress
    current = round_.inp.current
    safe = [
        counts
        for counts in smaller(current, round_.limits.bounds)
        if predict.holds(counts, round_.allowed / 2, stress)
    ]
    if not safe:
        return None

    def order(counts: Counts) -> tuple[object, ...]:
        return (round_.limits.devices(counts), -round(predict.attainment(counts), 6), counts)

    best = min(safe, key=order)
    freed = round_.limits.devices(current) - round_.limits.devices(best)
    message = (
        f"{round_.summary()}; {current} -> {best} frees {freed} devices and is predicted to hold "
        f"{stress:.2f} times this load"
    )
    return Proposal(best, Reason.SURPLUS, message)


def _idle(round_: Round) -> Proposal | None:
    """The smallest counts, when nothing was offered in any window of up to the shrinking dwell.

    `decide` applies it only after every round of the dwell said the same.
    """
    bounds, current = round_.inp.bounds, round_.inp.current
    lowest = Counts(bounds.groups.min, bounds.prefill.min, bounds.decode.min)
    shortest, *others = round_.sample.windows
    judged = [shortest, *(w for w in others if w.seconds <= round_.inp.settings.shrink_dwell)]
    if current == lowest or any(not known(w.offered) or w.offered > 0.0 for w in judged):
        return None
    freed = round_.limits.devices(current) - round_.limits.devices(lowest)
    message = (
        f"{current}: nothing was offered for {judged[-1].seconds:.0f} s; {current} -> {lowest} "
        f"frees {freed} devices"
    )
    return Proposal(lowest, Reason.SURPLUS, message)


def _healthy(round_: Round) -> bool:
    """Target met by measurement, or nothing offered at all."""
    if round_.evidence is not None:
        return round_.evidence.attainment >= round_.inp.slo.attainment
    offered = [window.offered for window in round_.sample.windows]
    return all(known(count) and count == 0.0 for count in offered)
