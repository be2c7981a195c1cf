"""Shrinking: straight to the smallest counts that hold the load, once that has lasted.

Only a role that loses instances is predicted under more than the load, so a role that is just big
enough does not forbid the other to shrink. Nothing goes below the largest need of the last cycle,
`LoopSettings.cycle`; while the load drifts downwards a small surplus is confirmed sooner. Where the
load came back soon after a reduction, the next one waits twice as long (`LoopMemory.patience`).
Without a profile nothing can be predicted; then only the absence of all traffic is proof enough,
and the step goes to the smallest counts at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pdserve.ratio.redundancy import is_redundant
from pdserve.ratio.round import Proposal, Round
from pdserve.ratio.types import Counts, LoopSettings, Need, Reason, known
from pdserve.terms import ROLES, Role


@dataclass(frozen=True, slots=True)
class Surplus:
    """Counts that would do, and how long that has to last yet."""

    proposal: Proposal
    wait: float
    """Seconds; 0: now."""


def propose_surplus(round_: Round) -> Surplus | None:
    """The smallest safe counts; None when today's are.

    Safe: measured attainment does not contradict, the load is not rising, and each role that
    shrinks is predicted to hold the margin above the highest likely load. Order among safe counts:
    fewest devices, highest predicted attainment, then fewest (groups, prefill, decode).
    """
    if round_.predict is None or round_.cautious is None:
        return _idle(round_)
    if round_.rate is None or round_.rate.rising or not _healthy(round_):
        return None
    now = _least(round_, _Kept(1, 1))
    if now is None:
        return None
    settings, current = round_.inp.settings, round_.inp.current
    hold = _hold(current, now, settings) if round_.rate.falling else settings.cycle
    hold *= round_.memory.patience
    best = _least(round_, _kept(round_.memory.needs, round_.inp.now - hold))
    since = round_.memory.needs[0].time if round_.memory.needs else round_.inp.now
    wait = max(since + hold - round_.inp.now, 0.0)
    if best is None or wait > 0.0:
        wait = max(wait, settings.fast_period)
        return Surplus(_proposal(round_, best or now), wait)
    return Surplus(_proposal(round_, best), 0.0)


@dataclass(frozen=True, slots=True)
class _Kept:
    """Fewest instances of each role that past needs leave."""

    prefill: int
    decode: int

    def of(self, role: Role) -> int:
        return self.prefill if role == "prefill" else self.decode


def _hold(current: Counts, least: Counts, settings: LoopSettings) -> float:
    """Seconds for which a surplus of this size must have lasted."""
    more = sum(max(current.total(role) - least.total(role), 0) for role in ROLES)
    return min(settings.cycle, settings.shrink_step * (1 + more))


def _kept(needs: Sequence[Need], since: float) -> _Kept:
    found = [need for need in needs if need.time >= since]
    return _Kept(
        max((need.prefill for need in found), default=1),
        max((need.decode for need in found), default=1),
    )


def _least(round_: Round, kept: _Kept) -> Counts | None:
    """The smallest counts below today's that are safe and not below `kept`."""
    predict, cautious = round_.predict, round_.cautious
    limits, current = round_.limits, round_.inp.current
    if predict is None or cautious is None:
        return None
    stress = round_.shrink_stress
    today = limits.devices(current)
    misses = {
        role: [
            cautious.misses(role, n, stress) if n < current.total(role) else predict.misses(role, n)
            for n in range(current.total(role) + 1)
        ]
        for role in ROLES
    }
    best: tuple[tuple[object, ...], Counts] | None = None
    for counts in _smaller(round_, kept):
        devices = limits.devices(counts)
        missed = sum(misses[role][counts.total(role)] for role in ROLES)
        if devices >= today or missed > round_.allowed or not limits.placeable(counts):
            continue
        if is_redundant(current) and not is_redundant(counts):
            continue
        rank = (devices, round(missed, 6), counts)
        if best is None or rank < best[0]:
            best = (rank, counts)
    return None if best is None else best[1]


def _smaller(round_: Round, kept: _Kept) -> Iterator[Counts]:
    """Counts within the bounds with at most today's instances of each role, and `kept` ones."""
    current, bounds = round_.inp.current, round_.limits.bounds
    for groups in range(max(bounds.groups.min, 1), min(bounds.groups.max, current.groups) + 1):
        per_role = []
        for role, allowed in (("prefill", bounds.prefill), ("decode", bounds.decode)):
            name: Role = "prefill" if role == "prefill" else "decode"
            least = max(allowed.min, -(-kept.of(name) // groups))
            per_role.append(range(least, min(allowed.max, current.total(name) // groups) + 1))
        for prefill in per_role[0]:
            for decode in per_role[1]:
                yield Counts(groups, prefill, decode)


def _proposal(round_: Round, best: Counts) -> Proposal:
    current = round_.inp.current
    freed = round_.limits.devices(current) - round_.limits.devices(best)
    message = (
        f"{round_.summary()}; {current} -> {best} frees {freed} devices; what shrinks is predicted "
        f"to hold {round_.shrink_stress:.2f} times this load"
    )
    return Proposal(best, Reason.SURPLUS, message)


def _idle(round_: Round) -> Surplus | None:
    """The smallest counts, when nothing was offered in any window of up to the shrinking dwell.

    They are applied only after every round of the dwell said the same.
    """
    bounds, current = round_.inp.bounds, round_.inp.current
    lowest = Counts(bounds.groups.min, bounds.prefill.min, bounds.decode.min)
    settings = round_.inp.settings
    shortest, *others = round_.sample.windows
    judged = [shortest, *(w for w in others if w.seconds <= settings.shrink_dwell)]
    if current == lowest or any(not known(w.offered) or w.offered > 0.0 for w in judged):
        return None
    freed = round_.limits.devices(current) - round_.limits.devices(lowest)
    message = (
        f"{current}: nothing was offered for {judged[-1].seconds:.0f} s; {current} -> {lowest} "
        f"frees {freed} devices"
    )
    now = round_.inp.now
    since = round_.memory.surplus_since
    last = max((change.time for change in round_.inp.changes), default=now - settings.shrink_dwell)
    start = max(now if since is None else since, last)
    wait = max(start + settings.shrink_dwell - now, 0.0)
    return Surplus(Proposal(lowest, Reason.SURPLUS, message), wait)


def _healthy(round_: Round) -> bool:
    """Measurements do not contradict: the target is met, or too few requests tell."""
    settled, window = round_.memory.settled_at, round_.inp.settings.window
    if round_.failing or settled is None or round_.inp.now - settled < window:
        return False
    return round_.evidence is None or round_.evidence.attainment >= round_.inp.slo.attainment
