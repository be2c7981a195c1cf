"""Kubernetes' HorizontalPodAutoscaler on each role by itself.

`desired = ceil(ready * metric / target)`, nothing within a tolerance of 10 %; pods that are not
ready count as 0 when growing. Growth by at most the larger of 100 % and 4 pods in 15 s; shrinking
takes the largest desire of the last 300 s. kubernetes.io/docs, "Horizontal Pod Autoscaling",
algorithm details and default behaviour. Targets: 70 % of both roles' limits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pdserve.sim.policies.base import Moment, PolicyChoice, PolicyWorld
from pdserve.sim.policies.role_signals import utilisations, with_role
from pdserve.terms import ROLES, Role

TARGET = 0.7
TOLERANCE = 0.1
STABLE_DOWN = 300.0


def desired(current: int, values: list[float], target: float, tolerance: float = TOLERANCE) -> int:
    """Replicas wanted; `values` are those of ready pods, others count 0 when growing.

    `current` where the ratio lies within the tolerance, or where unready pods would turn growth
    into its opposite.
    """
    if not values:
        return current
    ratio = sum(values) / len(values) / target
    if abs(ratio - 1.0) <= tolerance:
        return current
    if ratio > 1.0 and len(values) < current:
        ratio = sum(values) / current / target
        if ratio <= 1.0 + tolerance:
            return current
        return math.ceil(current * ratio)
    return math.ceil(len(values) * ratio)


@dataclass(slots=True)
class Stabiliser:
    """Growth within limits at once; shrinking to the largest desire of a window."""

    window: float = STABLE_DOWN
    _seen: list[tuple[float, int]] = field(default_factory=list)

    def settle(self, now: float, current: int, wanted: int) -> int:
        """Replicas from now on."""
        self._seen.append((now, wanted))
        self._seen = [(at, n) for at, n in self._seen if at > now - self.window]
        if wanted >= current:
            return min(wanted, max(2 * current, current + 4))
        return min(current, max(n for _, n in self._seen))


@dataclass(slots=True)
class Hpa:
    """See the module."""

    world: PolicyWorld
    period: float = 15.0
    _stable: dict[Role, Stabiliser] = field(
        default_factory=lambda: {role: Stabiliser() for role in ROLES}
    )

    def decide(self, moment: Moment) -> PolicyChoice:
        """Each role by itself."""
        counts = moment.counts
        for role in ROLES:
            current = moment.counts.total(role)
            wanted = desired(current, utilisations(self.world, moment, role), TARGET)
            counts = with_role(counts, role, self._stable[role].settle(moment.now, current, wanted))
        return PolicyChoice(counts, "utilisation")
