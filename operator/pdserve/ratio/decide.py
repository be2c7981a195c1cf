"""The ratio loop: one recorded input in, one explained decision out.

Order of a round; the first step with an answer ends it:

0. a person's hold (`ratio.hold`); around all, in mode Approve, a person's word (`ratio.approvals`);
1. who owns the counts (Fixed, External), and whether they lie inside the bounds and hold what a
   window by clock states (`ratio.window_floor`);
2. trust: without fresh, complete numbers nothing scales (`ratio.rejection`);
3. the model's floor: too few for the load that arrives, counted with what is on its way -> grow;
4. a change whose instances are not all ready blocks everything but the floor;
5. sure evidence that the target is missed although the model does not say so -> grow the role that
   is short (`ratio.bottleneck`) by what the model says, the load raised until it explains the
   measurement; unless slow instances explain it (`ratio.outliers`) or growth proved useless
   (`ratio.efficacy`);
6. after a surplus lasted, the smallest counts that the model accepts with margin.

Pure: no clock, no state but `LoopMemory`, which goes in and comes out. Reason codes:
`types.Reason`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from pdserve.ratio.approvals import settled
from pdserve.ratio.bottleneck import read_signals
from pdserve.ratio.growth import for_evidence, for_floor
from pdserve.ratio.memory import grown, observe_readiness, remember_health, shrunk
from pdserve.ratio.rejection import rejection_reason
from pdserve.ratio.round import Proposal, Round, open_round
from pdserve.ratio.surplus import propose_surplus
from pdserve.ratio.types import (
    Counts,
    Decision,
    DecisionInput,
    LoopMemory,
    Outcome,
    PlacementLimit,
    Reason,
    ScenarioSample,
    Unknown,
)
from pdserve.ratio.window_floor import windowed
from pdserve.terms.times import rfc3339

_OUTCOMES: Mapping[str, Outcome] = {"Advise": "Advised", "Approve": "Proposed"}
MAX_SHAPES = 16
"""Proposed shapes placement is asked about in one round."""


def decide(inp: DecisionInput) -> Decision:
    """What the scenario's counts should be now, and why; see the module for the order."""
    held = _on_hold(inp)
    if held is not None:
        return held
    if inp.mode != "Approve":
        return _decided(inp)
    return settled(inp, _decided(inp), lambda: _decided(replace(inp, mode="Auto")))


def _on_hold(inp: DecisionInput) -> Decision | None:
    """Counts that a person set, for as long as they are to stay."""
    hold = inp.hold
    if hold is None or inp.now >= hold.until or inp.mode in ("Fixed", "External"):
        return None
    to = inp.bounds.clamp(hold.counts)
    message = f"held at {to} until {rfc3339(hold.until)}, as ratio.hold says"
    memory = replace(observe_readiness(inp), surplus_since=None)
    if to == inp.current:
        return _held(inp, Reason.ON_HOLD, message, memory)
    return Decision(
        inp.now, inp.current, to, "Applied", Reason.ON_HOLD, f"{inp.current} -> {to}; {message}",
        memory=memory,
    )  # fmt: skip


def _decided(inp: DecisionInput) -> Decision:
    """Steps 1 to 6."""
    owned = _owner(inp)
    if owned is not None:
        return owned
    asked = windowed(inp)
    if asked.grow is not None:
        return _result(inp, asked.grow, inp.memory)
    decision = _by_load(asked.inp)
    if (
        asked.short is None
        or decision.outcome != "Held"
        or not isinstance(inp.sample, ScenarioSample)
    ):
        return decision
    # Nothing else is to be said: the window is not served.
    return replace(
        decision, outcome="Blocked", reason=asked.short.reason,
        message=f"{asked.short.message}; {decision.message}",
    )  # fmt: skip


def _by_load(inp: DecisionInput) -> Decision:
    """Steps 2 to 6."""
    sample = inp.sample
    rejected = rejection_reason(sample, inp.settings)
    memory = observe_readiness(inp)
    if isinstance(sample, Unknown) or rejected is not None:
        memory = replace(memory, surplus_since=None)
        return _held(inp, Reason.HOLD_NO_DATA, f"nothing scales: {rejected}", memory)
    return _with_data(inp, sample, memory)


def decide_placed(
    inp: DecisionInput, most: Callable[[Counts], PlacementLimit | None]
) -> tuple[DecisionInput, Decision]:
    """Decide, asking placement about each proposed shape until one stands.

    `most(counts)`: None when the proposal can be placed, else how many P/D groups of its shape
    can. The returned input holds every answer, so that deciding it again gives the same decision
    without asking. After `MAX_SHAPES` answers neither role grows in this round.
    """
    for _ in range(MAX_SHAPES):
        decision = decide(inp)
        grows = any(
            decision.to.total(role) > decision.before.total(role) for role in ("prefill", "decode")
        )
        if decision.outcome not in ("Applied", "Advised", "Proposed") or not grows:
            return inp, decision
        limit = most(decision.to)
        if limit is None or limit.groups >= decision.to.groups:
            return inp, decision
        inp = replace(inp, placement=(*inp.placement, limit))
    inp = replace(inp, placement=(*inp.placement, *_no_growth(inp.current)))
    return inp, decide(inp)


def _no_growth(current: Counts) -> tuple[PlacementLimit, ...]:
    """Limits that forbid more groups than today's, and more of either role in each."""
    why = "more shapes were not asked about"
    return (
        PlacementLimit(1, 1, current.groups, why),
        PlacementLimit(current.prefill + 1, 1, 0, why),
        PlacementLimit(1, current.decode + 1, 0, why),
    )


def _owner(inp: DecisionInput) -> Decision | None:
    """Step 1: counts that traffic has no say in."""
    memory = inp.memory
    if inp.mode == "External":
        message = "an external autoscaler owns the counts; pdserve only measures"
        return _held(inp, Reason.EXTERNAL_OWNER, message, memory)
    if inp.mode == "Fixed":
        to = inp.fixed or inp.bounds.clamp(inp.current)
        if to == inp.current:
            return _held(inp, Reason.FIXED_COUNTS, f"fixed at {to}", memory)
        return _result(inp, Proposal(to, Reason.FIXED_COUNTS, f"fixed at {to} by spec"), memory)
    inside = inp.bounds.clamp(inp.current)
    if inside != inp.current:
        message = f"{inp.current} lies outside the bounds; nearest inside is {inside}"
        return _result(inp, Proposal(inside, Reason.BOUNDS_CHANGED, message), memory)
    return None


def _with_data(inp: DecisionInput, sample: ScenarioSample, memory: LoopMemory) -> Decision:
    """Steps 3 to 6."""
    round_ = open_round(inp, sample, memory)
    memory = round_.memory
    floor = for_floor(round_)
    if floor is not None and not floor.blocked:
        more = replace(memory, surplus_since=None)
        if round_.rate is None or not (round_.rate.recurs or round_.rate.scheduled):
            more = grown(more, inp.now, inp.settings)
        decision = _result(inp, floor, more, round_)
        return decision if decision.outcome == "Applied" else replace(decision, memory=memory)
    waiting = _in_flight(inp, memory)
    if waiting is not None:
        return _held(inp, Reason.IN_FLIGHT, waiting, memory, round_)
    if round_.failing:
        return _failing(inp, replace(memory, surplus_since=None), round_)
    if floor is not None:
        return _result(inp, floor, replace(memory, surplus_since=None), round_)
    if round_.evidence is not None:
        memory = remember_health(memory, read_signals(sample, inp.profile))
    return _shrunk(inp, memory, round_)


def _failing(inp: DecisionInput, memory: LoopMemory, round_: Round) -> Decision:
    """Step 5: the target is surely missed."""
    failures = round_.failures()
    if failures is not None:
        return _held(inp, Reason.REQUESTS_FAIL, failures, memory, round_)
    proposal, applied = for_evidence(round_)
    applied = replace(applied, surplus_since=None)
    if proposal.blocked:
        given_up = proposal.reason is Reason.NO_EFFECT
        return _result(inp, proposal, applied if given_up else memory, round_)
    wait = _dwell_left(inp, inp.settings.grow_dwell)
    if wait > 0:
        message = f"{proposal.message}; next change in {wait:.0f} s at the earliest"
        return _held(inp, Reason.DWELL, message, memory, round_)
    decision = _result(inp, proposal, applied, round_)
    # Pressure that is not acted on would wind up.
    return decision if decision.outcome == "Applied" else replace(decision, memory=memory)


def _in_flight(inp: DecisionInput, memory: LoopMemory) -> str | None:
    """Step 3: what is still on its way, for as long as that may block."""
    if memory.unready_since is None:
        return None
    elapsed = inp.now - memory.unready_since
    if elapsed > inp.settings.in_flight_limit:
        return None
    return (
        f"waiting for ready instances: prefill {inp.ready_prefill}/{inp.current.total('prefill')}, "
        f"decode {inp.ready_decode}/{inp.current.total('decode')}, for {elapsed:.0f} s"
    )


def _shrunk(inp: DecisionInput, memory: LoopMemory, round_: Round) -> Decision:
    """Step 6: fewer would do, or nothing is to be done."""
    surplus = propose_surplus(round_)
    if surplus is None:
        memory = replace(memory, surplus_since=None)
        if round_.hopeless > round_.allowed:
            message = (
                f"{round_.summary()}; {round_.hopeless:.1%} of all offered requests are "
                "infeasible: an idle prefill takes longer than the TTFT target for them"
            )
            return _held(inp, Reason.INFEASIBLE_REQUESTS, message, memory, round_)
        return _held(inp, Reason.STEADY, round_.summary(), memory, round_)
    since = inp.now if memory.surplus_since is None else memory.surplus_since
    memory = replace(memory, surplus_since=since)
    if surplus.wait > 0:
        message = f"{surplus.proposal.message}; confirming for another {surplus.wait:.0f} s"
        return _held(inp, Reason.CONFIRMING_SURPLUS, message, memory, round_)
    fewer = shrunk(replace(memory, surplus_since=None), inp.now, inp.settings)
    decision = _result(inp, surplus.proposal, fewer, round_)
    return decision if decision.outcome == "Applied" else replace(decision, memory=memory)


def _dwell_left(inp: DecisionInput, dwell: float) -> float:
    last = max((change.time for change in inp.changes), default=None)
    return 0.0 if last is None else last + dwell - inp.now


def _held(
    inp: DecisionInput,
    reason: Reason,
    message: str,
    memory: LoopMemory,
    round_: Round | None = None,
) -> Decision:
    inputs = () if round_ is None else round_.inputs()
    candidates = () if round_ is None else round_.candidates(inp.current)
    return Decision(
        inp.now, inp.current, inp.current, "Held", reason, message, inputs, candidates, memory
    )


def _result(
    inp: DecisionInput, proposal: Proposal, memory: LoopMemory, round_: Round | None = None
) -> Decision:
    outcome = _OUTCOMES.get(inp.mode, "Applied")
    if proposal.blocked:
        outcome = "Blocked"
    return Decision(
        inp.now,
        inp.current,
        proposal.to,
        outcome,
        proposal.reason,
        proposal.message,
        () if round_ is None else round_.inputs(),
        () if round_ is None else round_.candidates(proposal.to),
        memory,
    )
