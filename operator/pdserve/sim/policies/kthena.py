"""Kthena's autoscaler: a metric per role, then ratio repair (pkg/autoscaler/algorithm).

Every 15 s per role: ratio = mean / target over ready pods, nothing within 10 %; missing pods count
as at target when shrinking and as 0 when growing. Growth and shrinking by at most one instance or
100 %; shrinking takes the largest count of 300 s. Panic when the metric passes 200 % of the target:
up to 1000 % at once, held for 60 s, in which nothing shrinks. Then, if prefills / decodes lies
below the least ratio, prefills are raised to it; above the most, decodes are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pdserve.ratio.types import Bounds, Counts
from pdserve.sim.policies.base import Moment, PolicyChoice, PolicyWorld
from pdserve.sim.policies.hpa import Stabiliser, desired
from pdserve.sim.policies.role_signals import utilisations, with_role
from pdserve.terms import ROLES, Role

TARGET = 0.7
PANIC, HELD = 2.0, 60.0
SPREAD = 2.0
"""The ratio may be half to twice that of the first counts."""


def repaired(
    prefill: int, decode: int, least: float, most: float, bounds: Bounds
) -> tuple[int, int]:
    """Counts whose ratio prefills / decodes lies within [least, most], raised rather than lowered.

    Both zero stays; exactly one zero becomes 1. Where the raised role meets its bound, the other is
    lowered to fit.
    """
    if prefill == 0 and decode == 0:
        return 0, 0
    prefill, decode = max(prefill, 1), max(decode, 1)
    if prefill < least * decode:
        prefill = math.ceil(least * decode)
        if prefill > bounds.prefill.max:
            prefill = bounds.prefill.max
            decode = math.floor(prefill / least)
    elif prefill > most * decode:
        decode = math.ceil(prefill / most)
        if decode > bounds.decode.max:
            decode = bounds.decode.max
            prefill = math.floor(decode * most)
    return prefill, decode


@dataclass(slots=True)
class Kthena:
    """See the module."""

    world: PolicyWorld
    period: float = 15.0
    _stable: dict[Role, Stabiliser] = field(
        default_factory=lambda: {role: Stabiliser() for role in ROLES}
    )
    _panic_until: dict[Role, float] = field(default_factory=dict)

    def decide(self, moment: Moment) -> PolicyChoice:
        """A metric for each role, then the ratio."""
        counts = moment.counts
        for role in ROLES:
            counts = with_role(counts, role, self._role(moment, role))
        start = self.world.shape.start
        ratio = start.prefill / start.decode
        prefill, decode = repaired(
            counts.prefill, counts.decode, ratio / SPREAD, ratio * SPREAD, self.world.bounds
        )
        return PolicyChoice(Counts(counts.groups, prefill, decode), "metric + ratio")

    def _role(self, moment: Moment, role: Role) -> int:
        current = moment.counts.total(role)
        values = utilisations(self.world, moment, role)
        if not values:
            return current
        wanted = desired(current, values, TARGET)
        if sum(values) / len(values) >= PANIC * TARGET:
            self._panic_until[role] = moment.now + HELD
        if moment.now < self._panic_until.get(role, -1.0):
            return max(current, min(wanted, 10 * current))
        return self._stable[role].settle(moment.now, current, wanted)
