"""One round's working set: demand, model, evidence and limits, derived once and shared.

`open_round` does all the deriving; `growth` and `surplus` only read. Also renders the numbers
that a decision carries for people.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pdserve.ratio.choose import CountLimits, Predictor
from pdserve.ratio.demand import estimate_demand
from pdserve.ratio.efficacy import judge
from pdserve.ratio.evidence import Evidence, hopeless, weigh
from pdserve.ratio.forecast import remember_forecast
from pdserve.ratio.memory import MIN_PRESSURE, remember_need
from pdserve.ratio.model import PerformanceModel, RoleModel, build
from pdserve.ratio.rate import RateEstimate, arrivals, covered, estimate_rate
from pdserve.ratio.recurrence import ahead, observe
from pdserve.ratio.types import (
    Counts,
    CountsCandidate,
    DecisionInput,
    Demand,
    LoopMemory,
    Need,
    Reason,
    ScenarioSample,
    known,
)
from pdserve.terms import ROLES

SURE_AT_ONCE = 0.99
GROSS = 10.0
"""The shortest window alone counts when that many times the misses that the SLO allows are in it,
with at least that posterior: a long healthy past cannot hide a failure that has just begun."""
MAX_INPUT = 64
"""Characters of one number of a record."""
CAUTION = 1.0
"""Standard errors of the profile by which times are taken longer before a role shrinks."""


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
    cautious: Predictor | None
    """As `predict`, with every time at the long end of its interval: for what shrinks."""
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

    @property
    def hopeless(self) -> float:
        """Share of offered requests, 0 to 1, that no number of instances answers in time."""
        return hopeless(self.sample.windows)

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
        if self.inp.window is not None:
            values["schedule"] = ",".join(self.inp.window.names)[:MAX_INPUT]
        if self.hopeless > 0.0:
            values["infeasible"] = f"{self.hopeless:.4f}"
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
    """Derive demand, model and evidence, and what evidence and need change in memory."""
    limits = limits_of(inp)
    sample = replace(sample, windows=covered(sample.windows))
    since = None if memory.jumped_at is None else inp.now - memory.jumped_at
    rate = estimate_rate(sample, inp.settings, since)
    if rate is not None and rate.jumped:
        memory = replace(memory, jumped_at=inp.now)
    usual = rate
    if rate is not None:
        memory, rate = _with_recurrence(memory, inp, sample, rate)
        window = inp.window
        if window is not None and window.rate > rate.ahead:
            rate = replace(rate, ahead=window.rate, scheduled=True)
    demand = (
        None
        if rate is None
        else estimate_demand(
            sample, inp.expected, rate, None if inp.profile is None else inp.profile.prompt_spread
        )
    )
    base = None
    if inp.profile is not None and demand is not None:
        base = build(inp.profile, demand, inp.slo)
        if usual is not None:
            memory = remember_forecast(memory, inp, base, usual, sample.lag)
    model = None if base is None else _pressed(base, memory)
    predicted = 1.0 if model is None else Predictor(model).attainment(inp.current)
    usable = _usable(inp, sample, memory, demand)
    target, settings = inp.slo.attainment, inp.settings
    calm = [w for w in sample.windows if w.seconds >= settings.evidence_window]
    evidence = weigh(calm, usable, target, predicted, settings)
    failing = evidence is not None and evidence.below > settings.evidence_confidence
    at_once = weigh(sample.windows[:1], usable, target, predicted, settings)
    if at_once is not None and 1.0 - at_once.attainment > GROSS * (1.0 - target):
        evidence, failing = at_once, at_once.below > SURE_AT_ONCE
    if evidence is not None:
        memory = judge(memory, evidence, inp.slo.attainment)
        if model is not None and evidence.below < 1.0 - inp.settings.evidence_confidence:
            memory = _relieved(memory, model, evidence, inp)
            model = _pressed(model, memory)
    predict, cautious = None if model is None else Predictor(model), None
    if predict is not None and inp.profile is not None and demand is not None:
        memory = remember_need(memory, _need(predict, limits, inp), inp.settings)
        careful = build(inp.profile, demand, inp.slo, CAUTION)
        cautious = Predictor(_pressed(careful, memory))
    return Round(
        inp, sample, memory, limits, rate, demand, model, predict, cautious, evidence, failing
    )


def _with_recurrence(
    memory: LoopMemory, inp: DecisionInput, sample: ScenarioSample, rate: RateEstimate
) -> tuple[LoopMemory, RateEstimate]:
    """Memory with the load's levels, and the rate with what they say of the time ahead."""
    shortest = sample.windows[0]
    count = arrivals(shortest)
    if count is None:
        return memory, rate
    levels = observe(memory.levels, inp.now, count / shortest.seconds, shortest.seconds)
    known_step = ahead(levels, inp.now, inp.settings, sample.lag)
    if known_step is not None and known_step > rate.ahead:
        rate = replace(rate, ahead=known_step, recurs=True)
    return replace(memory, levels=levels), rate


def _pressed(model: PerformanceModel, memory: LoopMemory) -> PerformanceModel:
    return replace(
        model,
        pressure_prefill=memory.pressure_prefill,
        pressure_decode=memory.pressure_decode,
        margin_prefill=memory.error_prefill,
        margin_decode=memory.error_decode,
    )


def _relieved(
    memory: LoopMemory, model: PerformanceModel, evidence: Evidence, inp: DecisionInput
) -> LoopMemory:
    """Memory in which the model does not contradict surely healthy evidence.

    Today's counts held the rate of the evidence, so no role feels more than they hold.
    """
    allowed = (1.0 - inp.slo.attainment) / 2
    prefill, decode = (
        most_pressure(model.role(role), inp.current.total(role), evidence.rate, allowed, pressure)
        for role, pressure in zip(
            ROLES, (memory.pressure_prefill, memory.pressure_decode), strict=True
        )
    )
    return replace(memory, pressure_prefill=prefill, pressure_decode=decode)


def most_pressure(
    part: RoleModel, instances: int, rate: float, allowed: float, high: float
) -> float:
    """Largest pressure, up to `high`, under which so many instances are predicted to hold `rate`.

    `allowed`: share of misses.
    """
    if part.misses(instances, rate * high) <= allowed:
        return high
    low = MIN_PRESSURE
    for _ in range(30):
        middle = (low + high) / 2
        if part.misses(instances, rate * middle) <= allowed:
            low = middle
        else:
            high = middle
    return low


def _need(predict: Predictor, limits: CountLimits, inp: DecisionInput) -> Need:
    """Fewest instances of each role by itself."""
    allowed, bounds = 1.0 - inp.slo.attainment, limits.bounds
    return Need(
        inp.now,
        predict.least("prefill", allowed, bounds.groups.max * bounds.prefill.max),
        predict.least("decode", allowed, bounds.groups.max * bounds.decode.max),
    )


def _usable(
    inp: DecisionInput, sample: ScenarioSample, memory: LoopMemory, demand: Demand | None
) -> float:
    """Seconds whose requests, when the windows ended, had met only the present counts.

    Requests count when they end, so those that came before the counts were complete are left out
    by the time that one takes.
    """
    since = memory.settled_at if memory.settled_at is not None else memory.unready_since
    tokens = 0.0 if demand is None else demand.output_tokens
    life = inp.slo.ttft + tokens * inp.slo.tpot
    return 0.0 if since is None else inp.now - sample.lag - since - life
