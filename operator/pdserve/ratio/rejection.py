"""Whether a sample may be acted on: the one gate in front of every scaling decision.

Nothing scales on data that are missing, stale, not numbers, too few, or partial
(architecture invariant 6). The answer is the sentence a person reads in the decision.
"""

from __future__ import annotations

from pdserve.ratio.types import LoopSettings, Quantity, ScenarioSample, Unknown, known


def rejection_reason(sample: ScenarioSample | Unknown, settings: LoopSettings) -> str | None:
    """Why the sample must not be used (missing, stale, partial or impossible); None when it may."""
    if isinstance(sample, Unknown):
        return f"metrics unavailable: {sample.reason}"
    if not sample.windows:
        return "metrics unavailable: no window was sampled"
    return _outdated(sample, settings) or _missing(sample, settings) or _unusable(sample, settings)


def _missing(sample: ScenarioSample, settings: LoopSettings) -> str | None:
    if sample.live == 0:
        return "no gateway of this service is live"
    if sample.missing_count <= settings.max_missing * sample.live:
        return None
    names = ", ".join(sample.missing)
    return f"partial: {sample.missing_count} of {sample.live} pods report nothing ({names})"


def _outdated(sample: ScenarioSample, settings: LoopSettings) -> str | None:
    problem = _not_a_count(sample.age, "age of the newest sample")
    if problem is not None:
        return problem
    if known(sample.age) and sample.age > settings.stale_after:
        return f"stale: newest sample is {sample.age:.0f} s old, limit {settings.stale_after:.0f} s"
    return None


def _unusable(sample: ScenarioSample, settings: LoopSettings) -> str | None:
    window = sample.windows[0]
    needed = {
        "scrapes": window.scrapes,
        "offered requests": window.offered,
        "requests that met the SLO": window.met,
    }
    for name, value in needed.items():
        problem = _not_a_count(value, name)
        if problem is not None:
            return problem
    if known(window.scrapes) and window.scrapes < settings.min_scrapes:
        least = settings.min_scrapes
        return f"only {window.scrapes:.0f} scrapes in {window.seconds:.0f} s, need {least:.0f}"
    if known(window.offered) and known(window.met) and window.met > window.offered * 1.5 + 5.0:
        return f"contradictory: {window.met:.0f} requests met of {window.offered:.0f} offered"
    return None


def _not_a_count(value: Quantity, name: str) -> str | None:
    if isinstance(value, Unknown):
        return f"{name}: {value.reason}"
    if not known(value):
        return f"{name}: {value} is not a count"
    return None
