"""How big a scenario starts, before any request was measured."""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.ratio.choose import CountLimits, Predictor, best_effort, grow
from pdserve.ratio.demand import expected_demand
from pdserve.ratio.model import build
from pdserve.ratio.profile import PerformanceProfile
from pdserve.ratio.types import Counts, ExpectedTraffic
from pdserve.terms import Role, Slo


@dataclass(frozen=True, slots=True)
class Sizing:
    """First counts, and the sentence that explains them."""

    counts: Counts
    message: str


def initial_counts(
    limits: CountLimits,
    slo: Slo,
    expected: ExpectedTraffic | None,
    profile: PerformanceProfile | None,
    fixed: Counts | None = None,
) -> Sizing:
    """Fewest devices that hold the announced traffic; the lower bounds when nothing is known.

    Same search and order as the running loop (`ratio.choose`), starting from the lower bounds.
    """
    if fixed is not None:
        return Sizing(fixed, f"fixed at {fixed} by spec")
    bounds = limits.bounds
    least = Counts(max(bounds.groups.min, 1), bounds.prefill.min, bounds.decode.min)
    if expected is None or profile is None:
        missing = "`expected` is not set" if expected is None else "no performance profile is known"
        return Sizing(least, f"{least}: the lower bounds, because {missing}")
    predict = Predictor(build(profile, expected_demand(expected), slo))
    allowed = 1.0 - slo.attainment
    most = {
        "prefill": bounds.groups.max * bounds.prefill.max,
        "decode": bounds.groups.max * bounds.decode.max,
    }

    def needs(role: Role) -> int:
        return predict.least(role, allowed, most[role])

    found = grow(least, limits, lambda counts: predict.holds(counts, allowed), needs)
    if found is not None:
        return Sizing(found, _explained(found, predict, expected, profile))
    best = best_effort(least, limits, predict)
    return Sizing(
        best,
        _explained(best, predict, expected, profile)
        + f"; nothing within the limits reaches {slo.attainment:.1%}",
    )


def _explained(
    counts: Counts, predict: Predictor, expected: ExpectedTraffic, profile: PerformanceProfile
) -> str:
    return (
        f"{counts} for {expected.requests_per_second:g} requests/s of {expected.prompt_tokens:g} + "
        f"{expected.output_tokens:g} tokens (profile {profile.source}): predicted "
        f"{predict.attainment(counts):.1%}"
    )
