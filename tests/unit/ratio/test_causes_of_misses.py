"""Misses that more instances do not mend: few growths, the cause named, nothing left behind."""

from __future__ import annotations

from dataclasses import replace

from tests.support.loop_runs import SLO, constant, loop_run, shape, step

from pdserve.ratio.types import Counts, Reason
from pdserve.sim.shapes import Fault, Mix

TWO_HOURS = 7200.0


def test_prompts_that_no_prefill_answers_in_time_are_not_answered_by_growth() -> None:
    """3.9 % of these prompts take longer than TTFT on an idle prefill."""
    start = Counts(1, 9, 5)
    mixes = (Mix(0.0, 4560.0, 100.0),)
    done = loop_run(shape(constant(3.0, TWO_HOURS), start, mixes=mixes))
    by_evidence = [d for d in done.growths if d.reason is not Reason.MODEL_FLOOR]
    assert len(by_evidence) <= 2, [d.message for d in by_evidence]
    assert max(d.to.prefill + d.to.decode for d in done.decisions) <= 17, "a few for bursts"
    named = [d for d in done.decisions if d.reason is Reason.INFEASIBLE_REQUESTS]
    assert 0.03 < float(dict(named[-1].inputs)["infeasible"]) < 0.05
    assert done.attainment >= 0.985


def test_a_handoff_target_below_the_floor_is_tried_twice_and_undone() -> None:
    impossible = replace(SLO, handoff=0.05)
    done = loop_run(shape(constant(3.0, TWO_HOURS), Counts(1, 2, 4), slo=impossible))
    by_evidence = [d for d in done.growths if d.reason is not Reason.MODEL_FLOOR]
    assert 1 <= len(by_evidence) <= 2, [d.message for d in by_evidence]
    assert Reason.NO_EFFECT in done.reasons
    assert done.counts_at(TWO_HOURS).decode <= 4


def test_one_slow_decode_is_named_and_not_outnumbered() -> None:
    slow = Fault(900.0, "decode", slow=1.6)
    done = loop_run(shape(constant(5.0, TWO_HOURS), Counts(1, 3, 6), faults=(slow,)))
    assert len([d for d in done.growths if d.time > 900.0]) <= 2
    named = [d for d in done.decisions if d.reason is Reason.SLOW_INSTANCE]
    assert named
    assert "times the median" in named[0].message
    assert done.counts_at(TWO_HOURS).decode <= 8


def test_a_shortage_destroys_no_serving_instance_and_names_the_limit() -> None:
    short = shape(step(3.75, 7.5, 1200.0, 4200.0), Counts(1, 2, 4), budget=6)
    done = loop_run(short)
    for decision in done.between(1200.0, 4200.0):
        assert decision.to.prefill >= decision.before.prefill, decision.message
        assert decision.to.decode >= decision.before.decode, decision.message
    limits = {d.reason for d in done.decisions if d.time > 1260.0 and d.outcome == "Blocked"}
    assert limits == {Reason.BUDGET_EXHAUSTED}
