"""Growing: to the model's floor, and by evidence that the floor is too low.

Both end in the same search (`choose.grow`): the fewest extra devices, so an instance changes its
role before the scenario gets bigger. A role may give instances away only if what stays holds the
load with the shrink margin. When no counts within the limits hold the target, the best within
them are taken; if those are today's, the round is Blocked and names the limit.
"""

from __future__ import annotations

from dataclasses import replace

from pdserve.ratio.bottleneck import Bottleneck, bottleneck, read_signals
from pdserve.ratio.choose import CountLimits, Predictor, best_effort, grow
from pdserve.ratio.efficacy import TRIALS, give_up, is_useless, tried, undone, useless_role
from pdserve.ratio.evidence import Evidence
from pdserve.ratio.memory import MAX_PRESSURE
from pdserve.ratio.model import PerformanceModel, RoleModel
from pdserve.ratio.outliers import slow_instances
from pdserve.ratio.redundancy import WORTH, is_redundant
from pdserve.ratio.round import Proposal, Round, most_pressure
from pdserve.ratio.types import Counts, LoopMemory, Reason, Trial
from pdserve.ratio.window_floor import named
from pdserve.terms import ROLES, Role

WORTH_CHANGING = 0.01
"""A change that cannot reach the target must promise at least this much attainment."""


def for_evidence(round_: Round) -> tuple[Proposal, LoopMemory]:
    """The target is surely missed: grow the role that is short, sized by the model.

    The memory returned is for when the proposal is applied: pressure that is never acted on would
    wind up.
    """
    useless = useless_role(round_.memory)
    if useless is not None and round_.evidence is not None:
        return _undo(round_, useless, round_.evidence)
    signals = read_signals(round_.sample, round_.inp.profile)
    fault = bottleneck(signals, round_.memory, round_.model, round_.inp.current)
    reason = Reason.PREFILL_SHORTAGE if fault.role == "prefill" else Reason.DECODE_SHORTAGE
    lead = f"{round_.summary()}; {fault.role} is short: {fault.why}"
    no_help = _slow(round_, fault.role) or _useless(round_, fault.role)
    if no_help is not None:
        return no_help, round_.memory
    if round_.model is None:
        return _one_more(round_, fault, reason, lead), _trial(round_, fault.role, round_.memory)
    unreachable = _unreachable(round_, round_.model)
    if unreachable is not None:
        return unreachable, round_.memory
    model = _stressed(round_, round_.model, fault.role)
    memory = replace(
        round_.memory,
        pressure_prefill=model.pressure_prefill,
        pressure_decode=model.pressure_decode,
    )
    proposal = _search(round_, Predictor(model), fault.role, reason, lead)
    return proposal, _trial(round_, fault.role, memory)


def for_floor(round_: Round) -> Proposal | None:
    """The model's floor: None when today's counts hold the predicted load.

    Instances on their way count as there: the floor only asks for what is not coming yet.
    """
    predict, current = round_.predict, round_.inp.current
    if predict is None or round_.model is None:
        return None
    if predict.holds(current, round_.allowed):
        return _second(round_, predict)
    unreachable = _unreachable(round_, round_.model)
    if unreachable is not None:
        return None if _fine(round_) else unreachable
    worse: Role = max(ROLES, key=lambda role: predict.misses(role, current.total(role)))
    lead = f"{round_.summary()}; predicted attainment {predict.attainment(current):.1%}"
    window = round_.inp.window
    if window is None or round_.rate is None or not round_.rate.scheduled:
        return _search(round_, predict, worse, Reason.MODEL_FLOOR, lead)
    lead = f"{named(window, round_.inp.now)}: {window.rate:g} requests/s; {lead}"
    return _search(round_, predict, worse, Reason.TIDAL_WINDOW, lead)


def _second(round_: Round, predict: Predictor) -> Proposal | None:
    """Another instance for a role that has one beside many of the other, within the limits."""
    current = round_.inp.current
    alone: Role = "prefill" if current.total("prefill") == 1 else "decode"
    others: Role = "decode" if alone == "prefill" else "prefill"
    needed = predict.least(others, round_.allowed, current.total(others))
    if is_redundant(current) or needed < WORTH:
        return None

    def accepts(counts: Counts) -> bool:
        grown = all(counts.total(role) >= current.total(role) for role in ROLES)
        return grown and is_redundant(counts) and predict.holds(counts, round_.allowed)

    found = grow(current, round_.limits, accepts, lambda role: max(current.total(role), 2))
    if found is None:
        return None
    lead = f"{round_.summary()}; everything depends on one {alone}"
    return Proposal(found, Reason.MODEL_FLOOR, f"{lead}; {_becomes(round_, predict, found)}")


def _trial(round_: Round, role: Role, memory: LoopMemory) -> LoopMemory:
    """Memory that watches whether growth of this role helps."""
    evidence, before = round_.evidence, round_.memory
    if evidence is None:
        return memory
    pressure = before.pressure_prefill if role == "prefill" else before.pressure_decode
    current = round_.inp.current
    trial = Trial(role, current, pressure, evidence.offered, evidence.met, evidence.rate)
    return tried(memory, trial)


def _undo(round_: Round, role: Role, evidence: Evidence) -> tuple[Proposal, LoopMemory]:
    """Growth of this role did not help: as before it, as far as the model allows."""
    current = round_.inp.current
    memory = give_up(round_.memory, role, evidence)
    to = round_.limits.bounds.clamp(undone(round_.memory, role, current))
    lead = f"{round_.summary()}; {TRIALS} growths of {role} brought no significant gain"
    if to == current or not _holds_with(round_, memory, to):
        return Proposal(current, Reason.NO_EFFECT, lead, blocked=True), memory
    return Proposal(to, Reason.NO_EFFECT, f"{lead}; {current} -> {to} undoes them"), memory


def _holds_with(round_: Round, memory: LoopMemory, counts: Counts) -> bool:
    """Whether the model accepts counts under the pressure of `memory`."""
    if round_.model is None:
        return True
    model = replace(
        round_.model,
        pressure_prefill=memory.pressure_prefill,
        pressure_decode=memory.pressure_decode,
    )
    return Predictor(model).holds(counts, round_.allowed)


def _useless(round_: Round, role: Role) -> Proposal | None:
    if not is_useless(round_.memory, role):
        return None
    message = (
        f"{round_.summary()}; {role} seems short, but its last {TRIALS} growths brought no gain: "
        "look for another cause (infeasible requests or targets, slow instances, the network)"
    )
    return Proposal(round_.inp.current, Reason.NO_EFFECT, message, blocked=True)


def _slow(round_: Round, role: Role) -> Proposal | None:
    """Slow instances of the role explain the misses: they are reported, not outnumbered."""
    found = slow_instances(round_.sample.instances, round_.inp.profile, role)
    evidence = round_.evidence
    if not found or evidence is None:
        return None
    touched = sum(slow.share for slow in found)
    if 1.0 - evidence.attainment > 2.0 * touched + round_.allowed:
        return None  # more misses than these instances can cause
    named = ", ".join(f"{s.name} ({s.factor:.2f} times the median)" for s in found[:5])
    message = f"{round_.summary()}; slow {role} instances: {named}; more instances do not help"
    return Proposal(round_.inp.current, Reason.SLOW_INSTANCE, message, blocked=True)


def _search(round_: Round, predict: Predictor, short: Role, reason: Reason, lead: str) -> Proposal:
    """The best counts with more of the role that is short."""
    current, allowed, limits = round_.inp.current, round_.allowed, round_.limits
    bounds = limits.bounds
    most = {
        "prefill": bounds.groups.max * bounds.prefill.max,
        "decode": bounds.groups.max * bounds.decode.max,
    }

    def needs(role: Role) -> int:
        least = predict.least(role, allowed, most[role])
        return max(least, current.total(role) + 1) if role == short else least

    def accepts(counts: Counts) -> bool:
        return predict.holds(counts, allowed) and _may_give(round_, predict, counts)

    found = grow(current, limits, accepts, needs)
    if found is not None:
        return Proposal(found, reason, f"{lead}; {_becomes(round_, predict, found)}")
    return _within_limits(round_, predict, short, reason, lead)


def _within_limits(
    round_: Round, predict: Predictor, short: Role, reason: Reason, lead: str
) -> Proposal:
    """Nothing holds the target: the best the limits allow, or blocked by which of them."""
    current = round_.inp.current
    found = best_effort(current, round_.limits, predict)
    gain = max(
        predict.attainment(found) - predict.attainment(current),
        predict.served(found) - predict.served(current),
    )
    limit = _binding(current, round_.limits, short)
    if found != current and gain >= WORTH_CHANGING:
        best = f"{_becomes(round_, predict, found)}, the most that {_named(limit, round_)} allows"
        return Proposal(found, reason, f"{lead}; {best}")
    return Proposal(
        current, limit, f"{lead}; {_named(limit, round_)} allows no better", blocked=True
    )


def _one_more(round_: Round, fault: Bottleneck, reason: Reason, lead: str) -> Proposal:
    """Without a model: one step of the role that is short (P/D-Serve 3.3, 'step by step')."""
    current = round_.inp.current

    def needs(role: Role) -> int:
        return current.total(role) + (1 if role == fault.role else 0)

    def accepts(counts: Counts) -> bool:
        return all(counts.total(role) >= needs(role) for role in ROLES)

    found = grow(current, round_.limits, accepts, needs)
    if found is not None:
        return Proposal(found, reason, f"{lead}; no profile yet, one step to {found}")
    limit = _binding(current, round_.limits, fault.role)
    return Proposal(current, limit, f"{lead}; {_named(limit, round_)} allows no more", blocked=True)


def _stressed(round_: Round, model: PerformanceModel, role: Role) -> PerformanceModel:
    """Raise the load the role feels until the model explains the measured attainment.

    Not above what a quarter more instances (at least one) hold: the rest, if it is needed, follows
    once this growth has shown an effect.
    """
    evidence = round_.evidence
    if evidence is None:
        return model
    instances = round_.inp.current.total(role)
    part, rate = model.role(role), model.rate
    # A model that looked too cautious is not trusted to be so any more.
    low = max(model.pressure_prefill if role == "prefill" else model.pressure_decode, 1.0)
    more = instances + max(1, instances // 4)
    high = most_pressure(part, more, rate, round_.allowed / 2, MAX_PRESSURE)
    found = max(low, min(high, _explaining(part, instances, rate, evidence.attainment, low)))
    if role == "prefill":
        return replace(model, pressure_prefill=found)
    return replace(model, pressure_decode=found)


def _explaining(part: RoleModel, instances: int, rate: float, measured: float, low: float) -> float:
    """Pressure of `low` or more under which the model predicts no more than was measured."""
    high = MAX_PRESSURE
    for _ in range(30):
        middle = (low + high) / 2
        if 1.0 - part.late(instances, rate * middle) > measured:
            low = middle
        else:
            high = middle
    return high


def _may_give(round_: Round, predict: Predictor, counts: Counts) -> bool:
    """Whether every role that loses instances holds the load, margin included, without them.

    While the load rises no role gives instances: how far it goes is not known yet.
    """
    rising = round_.rate is None or round_.rate.rising
    return all(
        counts.total(role) >= round_.inp.current.total(role)
        or (
            not rising
            and counts.total(role) >= _kept(round_, role)
            and predict.misses(role, counts.total(role), round_.shrink_stress) <= round_.allowed / 2
        )
        for role in ROLES
    )


def _kept(round_: Round, role: Role) -> int:
    """Most instances of the role that were needed in the last cycle."""
    needs = round_.memory.needs
    return max((n.prefill if role == "prefill" else n.decode for n in needs), default=1)


def _unreachable(round_: Round, model: PerformanceModel) -> Proposal | None:
    """No number of instances helps a request that misses its target on an idle one."""
    for role in ROLES:
        part = model.role(role)
        if not part.options:
            what = "T_p" if role == "prefill" else "one decode step"
            message = (
                f"{what} of a single request on an idle {role} instance is {part.alone:.3f} s, "
                f"above its target of {part.target:.3f} s: more instances do not help"
            )
            return Proposal(round_.inp.current, Reason.SLO_UNREACHABLE, message, blocked=True)
    return None


def _fine(round_: Round) -> bool:
    """Whether measured attainment meets the target although the model predicts a miss."""
    return round_.evidence is not None and round_.evidence.attainment >= round_.inp.slo.attainment


def _binding(current: Counts, limits: CountLimits, short: Role) -> Reason:
    """Which limit forbids one more instance of the role that is short."""
    more = (
        Counts(current.groups, current.prefill + 1, current.decode)
        if short == "prefill"
        else Counts(current.groups, current.prefill, current.decode + 1)
    )
    steps = [Counts(current.groups + 1, current.prefill, current.decode), more]
    inside = [counts for counts in steps if limits.bounds.clamp(counts) == counts]
    if not inside:
        return Reason.AT_MAXIMUM
    affordable = [counts for counts in inside if limits.within_budget(counts)]
    if not affordable:
        return Reason.BUDGET_EXHAUSTED
    if not any(limits.placeable(counts) for counts in affordable):
        return Reason.PLACEMENT_INFEASIBLE
    return Reason.AT_MAXIMUM


def _named(limit: Reason, round_: Round) -> str:
    """The limit in words, with its numbers."""
    bounds = round_.limits.bounds
    if limit is Reason.BUDGET_EXHAUSTED:
        parts = ", ".join(f"{b.devices} {b.resource}" for b in round_.limits.budget)
        return f"the device budget ({parts})"
    if limit is Reason.PLACEMENT_INFEASIBLE:
        parts = ", ".join(
            f"at most {p.groups} P/D groups of {p.prefill}P{p.decode}D"
            + (f": {p.detail}" if p.detail else "")
            for p in round_.limits.placement
        )
        return f"placement ({parts})"
    return (
        f"bounds (groups <= {bounds.groups.max}, prefill <= {bounds.prefill.max}, "
        f"decode <= {bounds.decode.max})"
    )


def _becomes(round_: Round, predict: Predictor, to: Counts) -> str:
    devices = round_.limits.devices(to) - round_.limits.devices(round_.inp.current)
    change = f"{round_.inp.current} -> {to}"
    return f"{change}, predicted {predict.attainment(to):.1%}, {devices:+d} devices"
