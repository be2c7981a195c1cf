"""What the loop's reason codes mean and what to do about them, for people.

Read by `kubectl pdserve explain`, by events and by the reference page; pure text.
"""

from __future__ import annotations

from pdserve.ratio.types import Decision, Reason

MEANING: dict[Reason, str] = {
    Reason.MODEL_FLOOR: "the model predicts that today's counts cannot hold the offered load",
    Reason.PREFILL_SHORTAGE: "requests miss the SLO and prefill is the role that is short",
    Reason.DECODE_SHORTAGE: "requests miss the SLO and decode is the role that is short",
    Reason.SURPLUS: "fewer are predicted to hold the load with margin, for long enough",
    Reason.TIDAL_WINDOW: "a window of the scenario's schedule is open, or opens by the time that "
    "instances take to start",
    Reason.NO_EFFECT: "growing this role twice brought no significant gain, so that is undone and "
    "not repeated; look for another cause: infeasible targets, slow instances, the network",
    Reason.BOUNDS_CHANGED: "the counts lay outside the bounds in the spec",
    Reason.FIXED_COUNTS: "ratio.mode is Fixed: the spec states the counts",
    Reason.ON_HOLD: "a person set these counts for a while (ratio.hold)",
    Reason.REJECTED: "a person rejected this change a moment ago; another one would be proposed",
    Reason.STEADY: "the SLO is met and no change pays",
    Reason.EXTERNAL_OWNER: "ratio.mode is External: an autoscaler on /scale owns the counts",
    Reason.IN_FLIGHT: "an earlier change, or a repair, is not complete, and what is on its way "
    "is enough for the load",
    Reason.DWELL: "a change is due, but the last one is too recent",
    Reason.CONFIRMING_SURPLUS: "fewer instances would do; waiting to be sure that it lasts",
    Reason.HOLD_NO_DATA: "metrics are missing, stale, partial or wrong, so nothing scales; "
    "check Prometheus and the scrape targets of this service",
    Reason.REQUESTS_FAIL: "requests fail for reasons that scaling does not mend; see gateway logs",
    Reason.INFEASIBLE_REQUESTS: "more requests than the SLO allows cannot be answered in time even "
    "by an idle prefill; shorten prompts or relax the TTFT target",
    Reason.SLOW_INSTANCE: "instances that are slower than their peers explain the misses; replace "
    "them, more instances do not help",
    Reason.AT_MAXIMUM: "the bounds allow no better; raise groups, prefill or decode max",
    Reason.BUDGET_EXHAUSTED: "the device budget allows no better; raise spec.budget",
    Reason.PLACEMENT_INFEASIBLE: "no free devices where a larger P/D group could stand",
    Reason.SLO_UNREACHABLE: "one request alone on an idle instance misses its target; "
    "shorten prompts, relax the target, or use larger instances",
}


def sentence(reason: Reason) -> str:
    """The meaning of a reason code."""
    return MEANING[reason]


def describe(decision: Decision) -> str:
    """A decision in a few lines: what, why, and the candidates with their predictions."""
    change = (
        f"{decision.before} -> {decision.to}"
        if decision.to != decision.before
        else str(decision.before)
    )
    lines = [
        f"{decision.outcome} {decision.reason}: {change}",
        f"  why: {sentence(decision.reason)}",
        f"  {decision.message}",
    ]
    lines += [
        f"  {c.note or 'candidate'}: {c.counts}, {c.devices} devices, predicted {c.attainment:.1%}"
        for c in decision.candidates
    ]
    if decision.inputs:
        lines.append("  " + ", ".join(f"{name}={value}" for name, value in decision.inputs))
    return "\n".join(lines)
