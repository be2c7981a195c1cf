"""Capacity and predicted attainment of a role, from its profile and the demand.

The balance equation of P/D-Serve (section 3.3, eq. 1: `n_p*b_p/T_p = n_d*b_d/T_d`) with capacity
read at the batch that would run, from a role's **own compute only**: time a prefill slot waits for
a decode is decode pressure and appears nowhere here. Queueing (`ratio.queueing`) turns capacity
into the share of requests that meet their targets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from pdserve.ratio.profile import PerformanceProfile
from pdserve.ratio.queueing import late_share, wait_exceeds
from pdserve.ratio.types import Demand
from pdserve.terms import Role, Slo

OUTPUT_CV2 = 1.0
"""Output lengths are taken as exponential: their spread is not measured."""


ADMISSION_MARGIN = 0.975
"""Part of TPOT that a step takes when a decode has as many requests as gateways give it."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """One way to run an instance: `batch` slots, each busy for `seconds` per request."""

    batch: int
    seconds: float
    slack: float
    """Longest wait for a slot that still meets the target, seconds."""

    @property
    def rate(self) -> float:
        """Requests per second of one instance, slots always full."""
        return self.batch / self.seconds


@dataclass(frozen=True, slots=True)
class RoleModel:
    """What one role does with one demand, whatever the number of instances."""

    options: tuple[OperatingPoint, ...]
    """Empty when a single request alone on an idle instance misses its target."""
    alone: float
    """That single request's T_p, or its TPOT, in seconds."""
    target: float
    cv2: float
    cliff: bool = False
    """Above capacity most requests miss: they wait as long as they may and then run too slowly."""

    @property
    def capacity(self) -> float:
        """mu: most requests per second of one instance within the target (0: none)."""
        return max((option.rate for option in self.options), default=0.0)

    def misses(self, instances: int, rate: float) -> float:
        """Share (0 to 1) of requests late for want of this role if none gave up (for sizing).

        `rate`: requests per second over all `instances` together; 1 where no batch meets the
        target.
        """
        return min(
            (
                wait_exceeds(o.batch * instances, rate * o.seconds, o.slack / o.seconds, self.cv2)
                for o in self.options
            ),
            default=1.0,
        )

    def late(self, instances: int, rate: float) -> float:
        """Share (0 to 1) of requests late for want of this role when late ones are shed.

        `rate`: requests per second over all `instances` together; 1 where no batch meets the
        target.
        """
        if self.cliff:
            return self.misses(instances, rate)
        return min(
            (
                late_share(o.batch * instances, rate * o.seconds, o.slack / o.seconds, self.cv2)
                for o in self.options
            ),
            default=1.0,
        )

    def utilisation(self, instances: int, rate: float) -> float:
        """Offered load over capacity, 0 or more; above 1 the role cannot keep up.

        `rate`: requests per second over all `instances` together; infinite without capacity.
        """
        return rate / (instances * self.capacity) if self.capacity > 0.0 else float("inf")


@dataclass(frozen=True, slots=True)
class PerformanceModel:
    """Both roles under one demand, with the load each role has proved to feel."""

    prefill: RoleModel
    decode: RoleModel
    rate: float
    pressure_prefill: float = 1.0
    pressure_decode: float = 1.0
    margin_prefill: float = 0.0
    """Share of the load that is added because forecasts were wrong by so much. Likewise decode."""
    margin_decode: float = 0.0

    def role(self, role: Role) -> RoleModel:
        """The model of one role."""
        return self.prefill if role == "prefill" else self.decode

    def felt(self, role: Role, stress: float = 1.0) -> float:
        """Requests per second the role is sized for: rate x its proved pressure x stress.

        With the margin for errors of the forecast.
        """
        pressure, margin = (
            (self.pressure_prefill, self.margin_prefill)
            if role == "prefill"
            else (self.pressure_decode, self.margin_decode)
        )
        return self.rate * pressure * (1.0 + margin) * stress


def build(
    profile: PerformanceProfile, demand: Demand, slo: Slo, caution: float = 0.0
) -> PerformanceModel:
    """The model of both roles for one demand under one SLO, without pressure.

    `caution`: standard errors by which every time is taken longer than the profile says.
    """
    return PerformanceModel(
        _prefill(profile, demand, slo, caution), _decode(profile, demand, slo, caution), demand.rate
    )


def _prefill(profile: PerformanceProfile, demand: Demand, slo: Slo, caution: float) -> RoleModel:
    """`mu_p = max over b <= b_p of b/T_p(b)`, over the batches that leave time to wait."""
    options = []
    for batch in _ladder(profile.prefill_slots):
        seconds = _prefill_seconds(profile, demand, batch, caution)
        if seconds <= slo.ttft:
            options.append(OperatingPoint(batch, seconds, slo.ttft - seconds))
    alone = _prefill_seconds(profile, demand, 1, caution)
    return RoleModel(tuple(options), alone, slo.ttft, _spread(demand))


def _decode(profile: PerformanceProfile, demand: Demand, slo: Slo, caution: float) -> RoleModel:
    """`mu_d = b*/T_d(b*)`, b* the largest batch whose step time meets TPOT."""
    steps = max(demand.output_tokens - 1.0, 0.0)  # token 1 is prefill's
    alone = _step_seconds(profile, demand, 1, caution)
    batch = largest_decode_batch(profile, demand, slo, caution)
    if batch == 0:
        return RoleModel((), alone, slo.tpot, OUTPUT_CV2)
    seconds = max(steps * _step_seconds(profile, demand, batch, caution), 1e-6)
    # Gateways put no more than b* on a decode (`admission_batch`): what is above it waits before
    # its prefill for as long as TTFT leaves (half of that, because prefill has waits of its own),
    # and after it.
    left = max(slo.ttft - _prefill_seconds(profile, demand, 1, caution), 0.0)
    cliff = batch < profile.decode_slots
    point = OperatingPoint(batch, seconds, slo.handoff + left / 2)
    return RoleModel((point,), alone, slo.tpot, OUTPUT_CV2, cliff)


def largest_decode_batch(
    profile: PerformanceProfile, demand: Demand, slo: Slo, caution: float = 0.0
) -> int:
    """b*: the largest batch within b_d whose step takes at most TPOT; 0 when none does.

    In requests of one instance; the step time is taken at the demand's mean context.
    """
    low, high = 0, profile.decode_slots
    while low < high:
        middle = (low + high + 1) // 2
        if _step_seconds(profile, demand, middle, caution) <= slo.tpot:
            low = middle
        else:
            high = middle - 1
    return low


def admission_batch(profile: PerformanceProfile, context: float, slo: Slo) -> int:
    """Most requests (1 or more) that gateways should have on one decode, within b_d.

    b* with a margin: when all decodes run at b* itself, half of the streams have contexts above the
    mean and miss TPOT. `context`: mean tokens of a request that runs.
    """
    each = profile.decode.per_request + profile.decode.per_context_token * context
    room = slo.tpot * ADMISSION_MARGIN - profile.decode.base
    if each <= 0.0:
        return profile.decode_slots
    return max(1, min(int(room / each), profile.decode_slots))


def _step_seconds(profile: PerformanceProfile, demand: Demand, batch: int, caution: float) -> float:
    context = demand.context_tokens
    seconds = profile.decode.step_seconds(batch, context)
    return seconds + caution * profile.decode.step_error(batch, context) if caution else seconds


def _prefill_seconds(
    profile: PerformanceProfile, demand: Demand, batch: int, caution: float
) -> float:
    tokens, squared = demand.uncached_tokens, demand.uncached_squared
    seconds = profile.prefill.batch_seconds(batch, tokens, squared)
    if caution:
        seconds += caution * profile.prefill.batch_error(batch, tokens, squared)
    return max(seconds, 1e-6)


def _spread(demand: Demand) -> float:
    """Squared coefficient of variation of prompt work, from the two moments of L."""
    if demand.uncached_tokens <= 0.0:
        return 1.0
    spread = demand.uncached_squared / demand.uncached_tokens**2 - 1.0
    return min(max(spread, 0.1), 4.0)


@cache
def _ladder(slots: int) -> tuple[int, ...]:
    """Batches worth trying: powers of two and the whole."""
    sizes: Iterable[int] = (2**k for k in range(slots.bit_length()))
    return tuple(sorted({size for size in sizes if size <= slots} | {slots}))
