"""Integers within bounds: the counts that hold the target with the fewest devices.

Every search is exhaustive over the shapes worth looking at and ends in one documented total
order, so equal inputs always give equal counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction

from pdserve.ratio.model import PerformanceModel
from pdserve.ratio.types import (
    Bounds,
    BudgetLimit,
    Counts,
    CountsCandidate,
    PlacementLimit,
    Range,
    RoleDevices,
)
from pdserve.terms import ROLES, Role

NEGLIGIBLE = 5e-4
"""Predicted misses below this round to none."""


@dataclass(frozen=True, slots=True)
class CountLimits:
    """Everything that forbids counts, whatever the traffic."""

    bounds: Bounds
    prefill: RoleDevices
    decode: RoleDevices
    budget: tuple[BudgetLimit, ...] = ()
    placement: tuple[PlacementLimit, ...] = ()

    def devices(self, counts: Counts) -> int:
        """Devices of both roles over all groups."""
        per_group = counts.prefill * self.prefill.devices + counts.decode * self.decode.devices
        return counts.groups * per_group

    def within_budget(self, counts: Counts) -> bool:
        """Whether both roles over all groups take at most the limit of each limited resource."""
        return all(self._uses(counts, limit.resource) <= limit.devices for limit in self.budget)

    def placeable(self, counts: Counts) -> bool:
        """Whether no placement limit of this or a smaller shape forbids that many groups."""
        return not any(
            counts.prefill >= limit.prefill
            and counts.decode >= limit.decode
            and counts.groups > limit.groups
            for limit in self.placement
        )

    def _uses(self, counts: Counts, resource: str) -> int:
        parts = ((counts.prefill, self.prefill), (counts.decode, self.decode))
        return counts.groups * sum(n * d.devices for n, d in parts if d.resource == resource)


@dataclass(slots=True)
class Predictor:
    """Predictions by total instances, each computed once per decision."""

    model: PerformanceModel
    _misses: dict[tuple[Role, int, float], float] = field(default_factory=dict)
    _late: dict[tuple[Role, int], float] = field(default_factory=dict)

    def misses(self, role: Role, instances: int, stress: float = 1.0) -> float:
        """Share of requests late for want of `instances` of a role, 0 to 1: `RoleModel.misses`.

        The load is what the role feels (rate x pressure), times `stress`.
        """
        key = (role, instances, stress)
        if key not in self._misses:
            felt = self.model.felt(role, stress)
            self._misses[key] = self.model.role(role).misses(instances, felt)
        return self._misses[key]

    def late(self, role: Role, instances: int) -> float:
        """`RoleModel.late` (a share of 0 to 1) at the load that the role feels."""
        key = (role, instances)
        if key not in self._late:
            self._late[key] = self.model.role(role).late(instances, self.model.felt(role))
        return self._late[key]

    def attainment(self, counts: Counts) -> float:
        """Predicted share (0 to 1) of offered requests that meet the SLO, as gateways count."""
        in_time = 1.0 - self.late("prefill", counts.total("prefill"))
        return in_time * (1.0 - self.late("decode", counts.total("decode")))

    def served(self, counts: Counts) -> float:
        """Shares (0 to 1) of the load for which each role has capacity, multiplied."""
        shares = (
            1.0 / max(self.model.role(role).utilisation(n, self.model.felt(role)), 1.0)
            for role in ROLES
            if (n := counts.total(role)) > 0
        )
        return math.prod(shares)

    def holds(self, counts: Counts, allowed: float, stress: float = 1.0) -> bool:
        """Whether at most the share `allowed` (0 to 1) of requests is predicted to miss.

        Misses of both roles are added; `stress` multiplies the load.
        """
        prefill = self.misses("prefill", counts.total("prefill"), stress)
        return prefill + self.misses("decode", counts.total("decode"), stress) <= allowed

    def least(self, role: Role, allowed: float, most: int, stress: float = 1.0) -> int:
        """Fewest instances of a role, 1 to `most`, with at most the share `allowed` of misses.

        `most` if none up to it holds that; `stress` multiplies the load.
        """
        low, high = 1, most
        while low < high:
            middle = (low + high) // 2
            if self.misses(role, middle, stress) <= allowed:
                high = middle
            else:
                low = middle + 1
        return low

    def candidate(self, counts: Counts, limits: CountLimits, note: str = "") -> CountsCandidate:
        """The counts with their devices and predicted attainment (to 0.01 %), for the record."""
        return CountsCandidate(
            counts, limits.devices(counts), round(self.attainment(counts), 4), note
        )


def churn(before: Counts, after: Counts) -> tuple[int, int]:
    """How many instances are destroyed and created on the way from `before` to `after`.

    Groups in both keep the instances that both counts have.
    """
    common = min(before.groups, after.groups)
    destroyed = created = 0
    for old, new in ((before.prefill, after.prefill), (before.decode, after.decode)):
        destroyed += common * max(old - new, 0) + (before.groups - common) * old
        created += common * max(new - old, 0) + (after.groups - common) * new
    return destroyed, created


def growth_order(current: Counts, limits: CountLimits) -> Callable[[Counts], tuple[object, ...]]:
    """Order among counts that hold the target, best first.

    1. fewest devices beyond today's (so a role moves before anything grows); 2. fewest instances
    destroyed; 3. fewest created; 4. ratio nearest to today's; 5. most P/D groups (growth at the
    right ratio is whole groups, and a fault reaches less); 6. fewest prefill, decode.
    """
    today = limits.devices(current)

    def key(counts: Counts) -> tuple[object, ...]:
        destroyed, created = churn(current, counts)
        shift = abs(Fraction(counts.prefill, counts.decode) - _ratio(current))
        extra = max(limits.devices(counts) - today, 0)
        return (extra, destroyed, created, shift, -counts.groups, counts)

    return key


def grow(
    current: Counts,
    limits: CountLimits,
    accepts: Callable[[Counts], bool],
    needs: Callable[[Role], int],
) -> Counts | None:
    """The best counts that `accepts` allows, in `growth_order`; None when there are none.

    `needs(role)`: fewest instances of a role that could be accepted, whatever the other has.
    """
    key = growth_order(current, limits)
    best: tuple[tuple[object, ...], Counts] | None = None
    for counts in _shapes(current, limits, needs):
        rank = key(counts)
        if (best is None or rank < best[0]) and accepts(counts):
            best = (rank, counts)
    return None if best is None else best[1]


def best_effort(current: Counts, limits: CountLimits, predict: Predictor) -> Counts:
    """The counts with the highest predicted attainment (to 0.1 %), then capacity, `growth_order`.

    For when nothing within the limits holds the target; may be `current` itself. No instance that
    serves is destroyed: in a shortage it is missed for as long as the one in its place starts, and
    the prediction is least sure there.
    """
    key = growth_order(current, limits)
    best, best_share, best_rank = current, (-1.0, -1.0), key(current)
    for counts in _frontier(current, limits, predict):
        share = (round(predict.attainment(counts), 3), round(predict.served(counts), 3))
        if share < best_share or churn(current, counts)[0] > 0:
            continue
        if not (limits.within_budget(counts) and limits.placeable(counts)):
            continue
        rank = key(counts)
        if share > best_share or rank < best_rank:
            best, best_share, best_rank = counts, share, rank
    return best


def _ratio(counts: Counts) -> Fraction:
    return Fraction(counts.prefill, max(counts.decode, 1))


def _shapes(current: Counts, limits: CountLimits, needs: Callable[[Role], int]) -> Iterator[Counts]:
    """Counts with at least the instances needed, up to a little above need or today."""
    need_p, need_d = needs("prefill"), needs("decode")
    for groups in _span(limits.bounds.groups):
        for prefill in _from(limits.bounds.prefill, need_p, groups, current.prefill):
            for decode in _from(limits.bounds.decode, need_d, groups, current.decode):
                counts = Counts(groups, prefill, decode)
                if limits.within_budget(counts) and limits.placeable(counts):
                    yield counts


def _from(allowed: Range, need: int, groups: int, today: int) -> range:
    """Per-group counts from what is needed to some above it; more never helps.

    The few above the need let one role make up for misses of the other.
    """
    least = max(allowed.min, -(-need // groups))
    return range(least, min(allowed.max, max(least + 3, today + 1)) + 1)


def _frontier(current: Counts, limits: CountLimits, predict: Predictor) -> Iterator[Counts]:
    """Counts within the bounds, per role up to where one more instance changes nothing."""
    for groups in _span(limits.bounds.groups):
        prefills = _useful("prefill", groups, limits.bounds.prefill, current, predict)
        decodes = _useful("decode", groups, limits.bounds.decode, current, predict)
        for prefill in prefills:
            for decode in decodes:
                yield Counts(groups, prefill, decode)


def _useful(
    role: Role, groups: int, allowed: Range, current: Counts, predict: Predictor
) -> list[int]:
    counts = []
    today = current.prefill if role == "prefill" else current.decode
    for count in range(allowed.min, allowed.max + 1):
        counts.append(count)
        if count >= today and predict.late(role, groups * count) < NEGLIGIBLE:
            break
    return counts


def _span(allowed: Range) -> Iterable[int]:
    return range(max(allowed.min, 1), allowed.max + 1)
