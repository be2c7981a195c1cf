"""One round's working set: demand, model, evidence and limits, derived once and shared.

`open_round` does all the deriving; `growth` and `surplus` only read. Also renders the numbers
that a decision carries for people.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pdserve.ratio.choose import CountLimits, Predictor
from pdserve.ratio.demand import RateEstimate, covered, estimate_demand, estimate_rate
from pdserve.ratio.evidence import Evidence, weigh
from pdserve.ratio.model import PerformanceModel, build
from pdserve.ratio.types import (
    Counts,
    CountsCandidate,
    DecisionInput,
    Demand,
    LoopMemory,
    Reason,
    ScenarioSample,
    known,
)
from pdserve.terms import ROLES

SURE_AT_ONCE = 0.99
"""Posterior from which on the shortest window alone is a hard signal, so that a long healthy past
cannot hide a failure that has just begun."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """Counts one part of the loop would like, or why it cannot have them."""

    to: Counts
    reason: Reason
    message: str
    blocked: bool = False


@dataclass(frozen=True, slots=True)
class Round:
    """Everything derived from one input."""

    inp: DecisionInput
    sample: ScenarioSample
    memory: LoopMemory
    limits: CountLimits
    rate: RateEstimate | None
    demand: Demand | None
    model: PerformanceModel | None
    """None without a profile, or before anything is known about request lengths."""
    predict: Predictor | None
    evidence: Evidence | None
    failing: bool

    @property
    def allowed(self) -> float:
        """Share of offered requests that may miss the SLO, 0 to 1."""
        return 1.0 - self.inp.slo.attainment

    @property
    def shrink_stress(self) -> float:
        """Factor of 1 or more on the load that the smaller counts must still hold."""
        margin = 1.0 + self.inp.settings.shrink_margin
        if self.rate is None or self.demand is None or self.demand.rate <= 0.0:
            return margin
        return margin * max(self.rate.high / self.demand.rate, 1.0)

    def summary(self) -> str:
        """One line on how the scenario does."""
        current = self.inp.current
        if self.evidence is None:
            return f"{current}: {self._load()}; no window yet covers only the present counts"
        share = f"{self.evidence.attainment:.1%} of {self.evidence.offered:.0f} offered met the SLO"
        return f"{current}: {share} (target {self.inp.slo.attainment:.1%}); {self._load()}"

    def failures(self) -> str | None:
        """Says so when most misses are failures that no instance count mends."""
        shortest, failed = self.sample.windows[0], self.sample.failed
        if not (known(shortest.offered) and known(shortest.met) and known(failed)):
            return None
        missed = shortest.offered - shortest.met
        if failed < 1.0 or failed <= missed / 2:
            return None
        return (
            f"{failed:.0f} of {shortest.offered:.0f} requests failed for reasons other than load; "
            "more instances do not help"
        )

    def _load(self) -> str:
        if self.demand is None:
            return "request lengths unknown"
        rate, d = self.demand.rate, self.demand
        return f"{rate:.2f} requests/s of {d.prompt_tokens:.0f} + {d.output_tokens:.0f} tokens"

    def candidates(self, to: Counts) -> tuple[CountsCandidate, ...]:
        """Today's counts and the chosen ones, with prediction and cost."""
        if self.predict is None:
            return ()
        found = [self.predict.candidate(self.inp.current, self.limits, "current")]
        if to != self.inp.current:
            found.append(self.predict.candidate(to, self.limits, "chosen"))
        return tuple(found)

    def inputs(self) -> tuple[tuple[str, str], ...]:
        """Rounded numbers for the record, sorted by name."""
        values: dict[str, str] = {}
        self._put_measured(values)
        if self.model is not None:
            self._put_model(values, self.model)
        return tuple(sorted(values.items()))

    def _put_measured(self, values: dict[str, str]) -> None:
        if self.evidence is not None:
            values["window"] = f"{self.evidence.window.seconds:.0f}s"
            values["offered"] = f"{self.evidence.offered:.0f}"
            values["attainment"] = f"{self.evidence.attainment:.4f}"
            values["belowTarget"] = f"{self.evidence.below:.3f}"
        if known(self.sample.age):
            values["age"] = f"{self.sample.age:.1f}s"
        if self.rate is not None:
            values["rate"] = f"{self.rate.now:.3f}"
            values["rateAhead"] = f"{self.rate.ahead:.3f}"
        if self.demand is not None:
            values["promptTokens"] = f"{self.demand.prompt_tokens:.0f}"
            values["uncachedTokens"] = f"{self.demand.uncached_tokens:.0f}"
            values["outputTokens"] = f"{self.demand.output_tokens:.0f}"
        for name, value in (
            ("waiting", self.sample.waiting),
            ("expired", self.sample.expired),
            ("decodeOverload", self.sample.decode_overload),
        ):
            if known(value):
                values[name] = f"{value:.0f}"
        kv_wait, requests = self.sample.prefill.kv_wait_seconds, self.sample.prefill.requests
        if known(kv_wait) and known(requests) and requests > 0:
            values["kvWait"] = f"{kv_wait / requests:.3f}s"

    def _put_model(self, values: dict[str, str], model: PerformanceModel) -> None:
        current = self.inp.current
        values["profile"] = self.inp.profile.source if self.inp.profile else "none"
        values["capacityPrefill"] = f"{model.prefill.capacity:.3f}"
        values["capacityDecode"] = f"{model.decode.capacity:.3f}"
        for role in ROLES:
            used = model.role(role).utilisation(current.total(role), model.felt(role))
            values[f"load{role.capitalize()}"] = f"{used:.3f}"
        values["pressurePrefill"] = f"{model.pressure_prefill:.2f}"
        values["pressureDecode"] = f"{model.pressure_decode:.2f}"


def limits_of(inp: DecisionInput) -> CountLimits:
    """The hard limits of an input."""
    return CountLimits(
        inp.bounds, inp.prefill_devices, inp.decode_devices, inp.budget, inp.placement
    )


def open_round(inp: DecisionInput, sample: ScenarioSample, memory: LoopMemory) -> Round:
    """Derive demand, model and evidence."""
    limits = limits_of(inp)
    sample = replace(sample, windows=covered(sample.windows))
    rate = estimate_rate(sample.windows, inp.settings)
    demand = None if rate is None else estimate_demand(sample, inp.expected, rate.ahead)
    model = None if demand is None else _model(inp, demand, memory)
    predict = None if model is None else Predictor(model)
    predicted = 1.0 if predict is None else predict.attainment(inp.current)
    usable = _usable(inp, sample, memory)
    evidence = weigh(sample.windows, usable, inp.slo.attainment, predicted, inp.settings)
    at_once = weigh(sample.windows[:1], usable, inp.slo.attainment, predicted, inp.settings)
    failing = evidence is not None and evidence.below > inp.settings.evidence_confidence
    if at_once is not None and at_once.below > max(SURE_AT_ONCE, inp.settings.evidence_confidence):
        evidence, failing = at_once, True
    return Round(inp, sample, memory, limits, rate, demand, model, predict, evidence, failing)


def _model(inp: DecisionInput, demand: Demand, memory: LoopMemory) -> PerformanceModel | None:
    if inp.profile is None:
        return None
    model = build(inp.profile, demand, inp.slo)
    return PerformanceModel(
        model.prefill, model.decode, model.rate, memory.pressure_prefill, memory.pressure_decode
    )


def _usable(inp: DecisionInput, sample: ScenarioSample, memory: LoopMemory) -> float:
    """Seconds for which the present counts had been in effect when the windows ended."""
    since = memory.settled_at if memory.settled_at is not None else memory.unready_since
    return 0.0 if since is None else inp.now - sample.lag - since
