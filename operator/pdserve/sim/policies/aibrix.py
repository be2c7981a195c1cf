"""AIBrix's PodAutoscaler on each role by itself: APA, and KPA (pkg/controller/podautoscaler).

APA: above 110 % of the target `ceil(n * use / target)`, below 90 % the same. KPA, as Knative's:
`ceil(concurrency / target)` over a stable window of 60 s; while the panic window asks for twice
what is ready, and for 60 s after, no shrinking. Both at most double and at most halve at once, and
shrink not within 300 s of the last change. Target: 70 % of an instance's limit. Resync every 10 s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pdserve.sim.policies.base import Moment, PolicyChoice, PolicyWorld
from pdserve.sim.policies.role_signals import concurrency, utilisations, with_role
from pdserve.sim.policies.signals import ScrapedSignals, decode_batch
from pdserve.terms import ROLES, Role

TARGET = 0.7
COOLDOWN = 300.0
STABLE, PANIC = 60.0, 2.0
"""Seconds of the stable window; share of ready instances from which on panic begins."""


def apa(current: int, use: float, target: float) -> int:
    """Replicas by APA's rule, tolerance 10 %, rates 2 and 2."""
    ratio = use / target
    if ratio > 1.1:
        return min(math.ceil(current * ratio), math.ceil(2.0 * current))
    if ratio < 0.9:
        return max(math.ceil(current * ratio), math.floor(current / 2.0), 1)
    return current


def kpa(current: int, total: float, target: float) -> int:
    """Replicas for a total concurrency, at most doubled and at most halved.

    Knative's example: 100 at 10 each of 70 % are 15.
    """
    return min(max(math.ceil(total / target), current // 2, 1), max(2 * current, 1))


@dataclass(slots=True)
class Apa:
    """See the module."""

    world: PolicyWorld
    period: float = 10.0
    _changed: dict[Role, float] = field(default_factory=dict)

    def decide(self, moment: Moment) -> PolicyChoice:
        """Each role by itself."""
        counts = moment.counts
        for role in ROLES:
            values = utilisations(self.world, moment, role)
            if not values:
                continue
            current = moment.counts.total(role)
            wanted = apa(current, sum(values) / current, TARGET)
            calm = moment.now - self._changed.get(role, -COOLDOWN) >= COOLDOWN
            if wanted > current or (wanted < current and calm):
                self._changed[role] = moment.now
                counts = with_role(counts, role, wanted)
        return PolicyChoice(counts, "APA")


@dataclass(slots=True)
class _KpaRole:
    """Windows of one role."""

    seen: list[tuple[float, float]] = field(default_factory=list)
    panic_until: float = -1.0
    panic_most: int = 0
    changed: float = -COOLDOWN

    def settle(self, now: float, current: int, wanted: int) -> int:
        """Replicas from now on: growth at once, shrinking after the cooldown."""
        if wanted == current or (wanted < current and now - self.changed < COOLDOWN):
            return current
        self.changed = now
        return wanted

    def wanted(self, now: float, total: float, target: float, ready: int, current: int) -> int:
        self.seen.append((now, total))
        self.seen = [(at, value) for at, value in self.seen if at > now - STABLE]
        stable = kpa(current, sum(value for _, value in self.seen) / len(self.seen), target)
        panic = kpa(current, total, target)
        if math.ceil(total / target) >= PANIC * max(ready, 1):
            self.panic_until = now + STABLE
        if now < self.panic_until:
            self.panic_most = max(self.panic_most, panic, stable, ready)
            return self.panic_most
        self.panic_most = 0
        return stable


@dataclass(slots=True)
class Kpa:
    """See the module."""

    world: PolicyWorld
    period: float = 10.0
    _roles: dict[Role, _KpaRole] = field(
        default_factory=lambda: {role: _KpaRole() for role in ROLES}
    )

    def decide(self, moment: Moment) -> PolicyChoice:
        """Each role by itself."""
        counts = moment.counts
        for role in ROLES:
            loads = concurrency(moment, role)
            target = self._target(moment, role)
            if not loads or target is None:
                continue
            ready = moment.ready_prefill if role == "prefill" else moment.ready_decode
            total = sum(loads) + (ScrapedSignals(moment).waiting if role == "prefill" else 0.0)
            state, current = self._roles[role], moment.counts.total(role)
            wanted = state.wanted(moment.now, total, target, ready, current)
            counts = with_role(counts, role, state.settle(moment.now, current, wanted))
        return PolicyChoice(counts, "KPA")

    def _target(self, moment: Moment, role: Role) -> float | None:
        if role == "prefill":
            return TARGET * self.world.profile.prefill_slots
        demand = ScrapedSignals(moment).demand(180.0)
        if demand is None:
            return None
        return TARGET * decode_batch(self.world.profile, demand, self.world.slo.tpot)
