"""The autoscaling laws of llm-d, on each role.

`SloAware` (llm-d.ai, architecture, "SLO-aware autoscaling with KEDA"): every 15 s s_raw = P90 /
target from one-minute rates, s = mean over 45 s of min(s_raw, 2). n replicas, r ready, c = r/n
while 0 < r < n, else 1. Above 0.55: `n + ceil(n * (s * c / 0.55 - 1))`; below 0.40:
`n - floor(n * (1 - s / 0.40))`; else hold. Its HPA grows by at most the larger of 100 % and 4 in
60 s after 30 s, and shrinks by 1 in 120 s after 180 s. The document is of one pool: here prefill
follows TTFT and decode TPOT. A decode alone already needs 0.6 of the TPOT target on this profile,
so decode's thresholds lie at the same shares of what is left above that; with 0.55 itself it would
grow without end.

`TokenAware` (token-velocity autoscaling): prefills = ceil(prompt tokens in flight / V_P / T), V_P
tokens per second of one prefill, T 65 % of what TTFT leaves; decodes = ceil(sum of use / 0.8), use
being streams over b*, because KV memory is no limit on this profile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pdserve.ratio.types import Counts
from pdserve.sim.policies.base import Moment, PolicyChoice, PolicyWorld
from pdserve.sim.policies.role_signals import utilisations, with_role
from pdserve.sim.policies.signals import ScrapedSignals, idle_tpot, prefill_seconds
from pdserve.terms import ROLES, Role
from pdserve.wire import metrics

UP, DOWN, CAP, SMOOTH = 0.55, 0.40, 2.0, 45.0
GROW_AFTER, SHRINK_AFTER = 30.0, 180.0
GROW_PERIOD, SHRINK_PERIOD = 60.0, 120.0
BUDGET = 0.65


def law(replicas: int, ready: int, s: float, up: float = UP, down: float = DOWN) -> int:
    """Replicas for a smoothed saturation s."""
    credit = ready / replicas if 0 < ready < replicas else 1.0
    if s > up:
        return max(replicas, replicas + math.ceil(replicas * (s * credit / up - 1.0)))
    if s < down:
        return replicas - math.floor(replicas * (1.0 - s / down))
    return replicas


@dataclass(slots=True)
class _SloRole:
    """Signal and HPA behaviour of one role."""

    seen: list[tuple[float, float]] = field(default_factory=list)
    wanted_before: list[tuple[float, int]] = field(default_factory=list)
    grown: list[tuple[float, int]] = field(default_factory=list)
    shrunk_at: float = -SHRINK_PERIOD

    def smooth(self, now: float, raw: float) -> float:
        self.seen.append((now, min(raw, CAP)))
        self.seen = [(at, value) for at, value in self.seen if at > now - SMOOTH]
        return sum(value for _, value in self.seen) / len(self.seen)

    def behave(self, now: float, current: int, wanted: int) -> int:
        self.wanted_before.append((now, wanted))
        self.wanted_before = [(at, n) for at, n in self.wanted_before if at > now - SHRINK_AFTER]
        recent = [n for at, n in self.wanted_before if at > now - GROW_AFTER]
        if min(recent) > current:
            self.grown = [(at, n) for at, n in self.grown if at > now - GROW_PERIOD]
            base = current - sum(n for _, n in self.grown)
            most = max(2 * base, base + 4)
            grown = max(current, min(*recent, most))
            self.grown.append((now, grown - current))
            return grown
        if (
            max(n for _, n in self.wanted_before) < current
            and now - self.shrunk_at >= SHRINK_PERIOD
        ):
            self.shrunk_at = now
            return current - 1
        return current


@dataclass(slots=True)
class SloAware:
    """See the module."""

    world: PolicyWorld
    period: float = 15.0
    _roles: dict[Role, _SloRole] = field(
        default_factory=lambda: {role: _SloRole() for role in ROLES}
    )

    def decide(self, moment: Moment) -> PolicyChoice:
        """Each role by its latency."""
        signals, slo, counts = ScrapedSignals(moment), self.world.slo, moment.counts
        if signals.away:
            return PolicyChoice(counts, "no data")
        for role in ROLES:
            state = self._roles[role]
            prefill = role == "prefill"
            metric = metrics.GATEWAY_TTFT if prefill else metrics.GATEWAY_TPOT
            target = slo.ttft if prefill else slo.tpot
            raw = (signals.p90(metric, target) or 0.0) / target
            idle = 0.0 if prefill else idle_tpot(self.world.profile, slo)
            up, down = (idle + share * (1.0 - idle) for share in (UP, DOWN))
            current = moment.counts.total(role)
            ready = moment.ready_prefill if prefill else moment.ready_decode
            wanted = max(1, law(current, ready, state.smooth(moment.now, raw), up, down))
            counts = with_role(counts, role, state.behave(moment.now, current, wanted))
        return PolicyChoice(counts, "P90 / target")


def prefills_for_tokens(tokens: float, velocity: float, wait: float) -> int:
    """Prefill replicas for so many prompt tokens in flight.

    `velocity`: tokens per second of one; `wait`: seconds that a request may queue.
    """
    return max(1, math.ceil(tokens / velocity / wait))


@dataclass(slots=True)
class TokenAware:
    """See the module."""

    world: PolicyWorld
    period: float = 15.0
    _down: dict[Role, list[tuple[float, int]]] = field(
        default_factory=lambda: {role: [] for role in ROLES}
    )

    def decide(self, moment: Moment) -> PolicyChoice:
        """Tokens in flight and streams, shrinking to the largest count of 300 s."""
        signals = ScrapedSignals(moment)
        demand = None if signals.away else signals.demand(180.0)
        if demand is None:
            return PolicyChoice(moment.counts, "no data")
        alone = prefill_seconds(self.world.profile, demand)
        velocity = demand.uncached_tokens / alone
        in_flight = sum(signals.loads(moment.prefills)) + signals.waiting
        wait = BUDGET * max(self.world.slo.ttft - alone, 0.05)
        prefill = prefills_for_tokens(in_flight * demand.uncached_tokens, velocity, wait)
        use = sum(utilisations(self.world, moment, "decode"))
        decode = max(1, math.ceil(use / 0.8))
        wanted = {"prefill": prefill, "decode": decode}
        counts = Counts(1, *(self._calm(moment, role, wanted[role]) for role in ROLES))
        return PolicyChoice(counts, "tokens in flight")

    def _calm(self, moment: Moment, role: Role, wanted: int) -> int:
        recent = [(at, n) for at, n in self._down[role] if at > moment.now - 300.0]
        self._down[role] = [*recent, (moment.now, wanted)]
        return max(n for _, n in self._down[role])
