"""What other counts would attain, for `kubectl pdserve explain`: the loop's own model, now.

Decodes are taken with no more requests than gateways give them (`sizing.size`). The profile is
the learned one (ConfigMap SCENARIOGROUP-profile) with the demand and pressures
that the newest decision with figures recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pdserve import api
from pdserve.cli.view_status import counts_text
from pdserve.ratio.choose import Predictor
from pdserve.ratio.demand import DEFAULT_SPREAD
from pdserve.ratio.profile import PerformanceProfile
from pdserve.ratio.types import Counts, Demand
from pdserve.sizing.size import predicted_attainment, sizing_model
from pdserve.terms import Slo

FIGURES = ("rateAhead", "promptTokens", "uncachedTokens", "outputTokens")


def render_counts(group: api.ScenarioGroup, slo: Slo, profile: PerformanceProfile | None) -> str:
    """A line for today's counts and for each with one instance of a role more or less a group.

    `profile`: what was learned; None where nothing was.
    """
    spec = group.spec
    if spec.replicas is None or spec.prefill.replicas is None or spec.decode.replicas is None:
        return ""
    if profile is None:
        return "What other counts would attain: no profile is learned yet"
    inputs = next(
        (d.inputs for d in reversed(group.status.decisions) if set(FIGURES) <= set(d.inputs)), None
    )
    demand = None if inputs is None else _demand(inputs, profile)
    if inputs is None or demand is None:
        return "What other counts would attain: no decision has figures of the demand yet"
    model = replace(
        sizing_model(profile, demand, slo),
        pressure_prefill=_number(inputs.get("pressurePrefill")) or 1.0,
        pressure_decode=_number(inputs.get("pressureDecode")) or 1.0,
    )
    predict = Predictor(model)
    now = api.DecisionCounts(
        groups=spec.replicas, prefill=spec.prefill.replicas, decode=spec.decode.replicas
    )
    lines = [
        f"What other counts would attain, at {demand.rate:.2f} requests/s of "
        f"{demand.prompt_tokens:.0f} + {demand.output_tokens:.0f} tokens (model; target "
        f"{slo.attainment:.1%})"
    ]
    for name, counts in _around(now):
        shown = predicted_attainment(predict, _counts(counts), 1.0 - slo.attainment)
        lines.append(f"  at {counts_text(counts)}: {shown:.1%}{name}")
    return "\n".join(lines)


def _around(now: api.DecisionCounts) -> list[tuple[str, api.DecisionCounts]]:
    found = [("  (now)", now)]
    for prefill, decode in ((-1, 0), (1, 0), (0, -1), (0, 1), (1, -1), (-1, 1)):
        if now.prefill + prefill >= 1 and now.decode + decode >= 1:
            other = api.DecisionCounts(
                groups=now.groups, prefill=now.prefill + prefill, decode=now.decode + decode
            )
            found.append(("", other))
    return found


def _counts(counts: api.DecisionCounts) -> Counts:
    return Counts(counts.groups, counts.prefill, counts.decode)


def _demand(inputs: Mapping[str, str], profile: PerformanceProfile) -> Demand | None:
    numbers = [_number(inputs.get(name)) for name in FIGURES]
    if any(n is None for n in numbers):
        return None
    rate, prompt, uncached, output = (n or 0.0 for n in numbers)
    spread = profile.prompt_spread or DEFAULT_SPREAD
    return Demand(rate, prompt, uncached, uncached * uncached * spread, max(output, 1.0))


def _number(text: str | None) -> float | None:
    """A figure of a decision; None where it is none (status can be written by others)."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0.0 <= value < 1e12 else None
