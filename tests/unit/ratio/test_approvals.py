"""Mode Approve, and counts that a person holds: what waits, until when, and what an answer does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.ratio_values import TODAY, decision_input, sample
from tests.unit.ratio.test_closed_loop import CHAT, run, step
from tests.unit.ratio.test_decide import failing

from pdserve.ratio.decide import decide
from pdserve.ratio.records import record, replay
from pdserve.ratio.types import (
    Counts,
    CountsHold,
    Decision,
    DecisionInput,
    PendingChange,
    ProposalAnswer,
    Reason,
    Unknown,
    WindowFloor,
)


def short(**over: Any) -> DecisionInput:
    """Requests miss: the loop would grow at once."""
    return failing(mode="Approve", **over)


def well(**over: Any) -> DecisionInput:
    return decision_input(mode="Approve", **over)


def proposed() -> tuple[DecisionInput, PendingChange]:
    inp = short()
    pending = decide(inp).pending
    assert pending is not None
    return inp, pending


def after(inp: DecisionInput, last: Decision, seconds: float, **over: Any) -> DecisionInput:
    """The next round."""
    values: dict[str, Any] = {
        "now": inp.now + seconds,
        "memory": last.memory,
        "pending": last.pending,
    }
    return replace(inp, **(values | over))


def test_what_the_loop_would_do_is_proposed_with_its_reason_and_prediction() -> None:
    inp = short()
    got, auto = decide(inp), decide(replace(inp, mode="Auto"))
    assert (got.outcome, got.changes) == ("Proposed", False)
    assert (got.to, got.reason, got.message) == (auto.to, auto.reason, auto.message)
    pending = got.pending
    assert pending is not None
    assert (pending.before, pending.to, pending.reason) == (got.before, auto.to, auto.reason)
    assert pending.expires == pending.time + 900
    chosen = next(c for c in auto.candidates if c.note == "chosen")
    assert pending.attainment == chosen.attainment
    assert replay(record(inp, got))[2]


def test_the_same_proposal_waits_and_is_not_made_again() -> None:
    inp, pending = proposed()
    second = decide(after(inp, decide(inp), 300.0))
    assert second.outcome == "Proposed"
    assert second.pending == pending


@pytest.mark.parametrize("by", [5.0, 899.0])
def test_an_approved_change_is_applied_as_the_loop_itself_would(by: float) -> None:
    inp, pending = proposed()
    answer = ProposalAnswer(pending.id, "Approve")
    later = after(inp, decide(inp), by, answer=answer)
    got, auto = decide(later), decide(replace(later, mode="Auto", pending=None))
    assert got.changes
    assert (got.to, got.pending) == (pending.to, None)
    assert got.message.startswith(f"approved ({pending.id}): ")
    assert got.memory.trials == auto.memory.trials, "its effect is watched as ever"
    assert replay(record(later, got))[2]


def test_an_answer_to_another_proposal_does_nothing() -> None:
    inp, pending = proposed()
    got = decide(after(inp, decide(inp), 5.0, answer=ProposalAnswer("00000000", "Approve")))
    assert not got.changes
    assert got.pending == pending


def test_a_proposal_expires_and_a_new_one_has_a_name_of_its_own() -> None:
    inp, pending = proposed()
    answer = ProposalAnswer(pending.id, "Approve")
    got = decide(after(inp, decide(inp), 901.0, answer=answer))
    assert not got.changes, "the answer came too late"
    assert got.pending is not None
    assert got.pending.id != pending.id


def test_a_rejected_change_is_not_proposed_again_for_its_time() -> None:
    inp, pending = proposed()
    answer = ProposalAnswer(pending.id, "Reject")
    said = decide(after(inp, decide(inp), 5.0, answer=answer))
    assert (said.outcome, said.reason, said.to) == ("Held", Reason.REJECTED, inp.current)
    assert said.pending is not None
    assert said.pending.rejected
    still = decide(after(inp, said, 600.0, answer=answer))
    assert still.reason is Reason.REJECTED
    over = decide(after(inp, said, 905.0, answer=answer))
    assert over.outcome == "Proposed"
    assert over.pending is not None
    assert not over.pending.rejected
    assert replay(record(inp, said))[0] == said


def test_another_change_is_proposed_though_one_was_rejected() -> None:
    inp, pending = proposed()
    answer = ProposalAnswer(pending.id, "Reject")
    said = decide(after(inp, decide(inp), 5.0, answer=answer))
    window = WindowFloor(("day",), 3, 4, 5, 0.0, 0.0, 1e6)
    got = decide(after(inp, said, 5.0, answer=answer, window=window))
    assert (got.outcome, got.reason) == ("Proposed", Reason.TIDAL_WINDOW)


def test_it_is_withdrawn_when_the_loop_said_otherwise_for_a_control_period() -> None:
    inp, pending = proposed()
    first = decide(inp)
    healthy = well(sample=sample(at=inp.now + 10), answer=ProposalAnswer(pending.id, "Reject"))
    once = decide(after(healthy, first, 10.0, answer=None))
    assert once.pending == pending, "one round says little"
    gone = decide(after(healthy, once, 61.0, answer=None))
    assert gone.pending is None
    assert gone.outcome == "Held"


def test_another_change_takes_its_place_when_the_loop_wants_that_for_a_control_period() -> None:
    inp, pending = proposed()
    window = WindowFloor(("day",), 3, 4, 5, 0.0, 0.0, 1e6)
    once = decide(after(inp, decide(inp), 5.0, window=window))
    assert (once.to, once.pending) == (pending.to, pending), "what is shown stays for a while"
    got = decide(after(inp, once, 61.0, window=window))
    assert got.pending is not None
    assert got.pending.id != pending.id
    assert got.pending.to == got.to != pending.to


@pytest.mark.invariant(6)
def test_without_data_nothing_is_applied_and_nothing_withdrawn() -> None:
    inp, pending = proposed()
    answer = ProposalAnswer(pending.id, "Approve")
    away = after(inp, decide(inp), 400.0, sample=Unknown("away"), answer=answer)
    got = decide(away)
    assert (got.outcome, got.reason, got.pending) == ("Held", Reason.HOLD_NO_DATA, pending)
    assert decide(after(away, got, 10.0, sample=inp.sample)).changes, "the answer still counts"


@pytest.mark.parametrize("over", [{"current": Counts(1, 2, 3)}, {"bounds": None}])
def test_other_counts_or_bounds_withdraw_it(over: dict[str, Any]) -> None:
    inp, pending = proposed()
    if "bounds" in over:
        top = replace(inp.bounds, prefill=replace(inp.bounds.prefill, max=1),
                      decode=replace(inp.bounds.decode, max=3),
                      groups=replace(inp.bounds.groups, max=1))  # fmt: skip
        over = {"bounds": top}
    answer = ProposalAnswer(pending.id, "Approve")
    got = decide(after(inp, decide(inp), 5.0, answer=answer, **over))
    assert not got.changes
    assert got.pending is None or got.pending.id != pending.id


def test_growth_in_an_overload_waits_too_and_other_modes_know_no_proposal() -> None:
    done = run(step(4.0, 9.0, 300), CHAT, 600, Counts(1, 1, 3), mode="Approve")
    assert not done.changes
    assert any(d.pending is not None for d in done.decisions)
    _, pending = proposed()
    left = decide(decision_input(pending=pending))
    assert left.pending is None, "a change of mode withdraws it"


# --- hold --------------------------------------------------------------------------------------

HOLD = CountsHold(Counts(1, 2, 2), 6000.0)


@pytest.mark.parametrize("mode", ["Auto", "Advise", "Approve"])
def test_a_hold_sets_its_counts_and_keeps_them_whatever_is_measured(mode: str) -> None:
    inp = failing(mode=mode, hold=HOLD)
    got = decide(inp)
    assert (got.outcome, got.reason, got.to) == ("Applied", Reason.ON_HOLD, HOLD.counts)
    assert replay(record(inp, got))[2]
    there = decide(failing(HOLD.counts, mode=mode, hold=HOLD))
    assert (there.outcome, there.reason) == ("Held", Reason.ON_HOLD)
    assert "until 1970-01-01T01:40:00Z" in there.message


def test_a_hold_counts_more_than_a_window_by_clock() -> None:
    window = WindowFloor(("day",), 3, 4, 5, 0.0, 0.0, 1e6)
    assert decide(failing(HOLD.counts, hold=HOLD, window=window)).to == HOLD.counts


def test_after_its_time_the_loop_goes_on() -> None:
    got = decide(failing(hold=replace(HOLD, until=5000.0)))
    assert got.changes
    assert got.reason is not Reason.ON_HOLD


@pytest.mark.invariant(3)
def test_a_hold_stays_inside_the_bounds_and_out_of_modes_with_owners() -> None:
    wide = replace(HOLD, counts=Counts(60, 60, 60))
    assert decide(decision_input(hold=wide)).to == Counts(4, 6, 6)
    for mode in ("Fixed", "External"):
        got = decide(decision_input(mode=mode, hold=HOLD, fixed=TODAY))
        assert got.reason is not Reason.ON_HOLD
