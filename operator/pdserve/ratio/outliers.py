"""Instances that are slower than the others of their role at the same work.

Each instance's measured time over the profile's time for its own batches gives a factor; one that
lies far above the median of its role is slow by itself (a throttled or shared device, a bad link).
More instances do not mend it: requests that meet it miss their targets all the same, so it is
reported, and growth for want of attainment waits until it is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from pdserve.ratio.profile import PerformanceProfile
from pdserve.ratio.types import InstanceWindow
from pdserve.terms import Role

SLOW = 1.3
"""Factor over the median from which on an instance is slow."""
LEAST_INSTANCES = 3
"""Fewer have no median that tells which of them differs."""
LEAST_COUNT: dict[Role, float] = {"prefill": 5.0, "decode": 50.0}
"""Batches or steps below which a mean time tells nothing."""


@dataclass(frozen=True, slots=True)
class SlowInstance:
    """An instance that is slower than its peers."""

    name: str
    factor: float
    """Its time over the median of its role, at equal work."""
    share: float
    """Its part of the role's requests (decode: of their tokens), 0 to 1."""


def slow_instances(
    instances: Sequence[InstanceWindow], profile: PerformanceProfile | None, role: Role
) -> tuple[SlowInstance, ...]:
    """Those of the role, the slowest first. None are known without a profile."""
    seen = [i for i in instances if i.role == role and i.count >= LEAST_COUNT[role]]
    if profile is None or len(seen) < LEAST_INSTANCES:
        return ()
    factors = [_factor(i, profile) for i in seen]
    usual = median(factors)
    work = [i.first for i in seen]
    whole = sum(work)
    if usual <= 0.0 or whole <= 0.0:
        return ()
    found = [
        SlowInstance(i.name, factor / usual, part / whole)
        for i, factor, part in zip(seen, factors, work, strict=True)
        if factor > SLOW * usual
    ]
    return tuple(sorted(found, key=lambda slow: (-slow.factor, slow.name)))


def _factor(instance: InstanceWindow, profile: PerformanceProfile) -> float:
    """Measured over predicted time of its mean batch or step."""
    first, second = instance.first / instance.count, instance.second / instance.count
    if instance.role == "prefill":
        pre = profile.prefill
        predicted = pre.base + pre.per_token * first + pre.per_token_squared * second
    else:
        dec = profile.decode
        predicted = dec.base + dec.per_request * first + dec.per_context_token * second
    return instance.seconds / instance.count / predicted if predicted > 0.0 else 0.0
