"""Who owns a scenario's counts in each mode, and which counts a scenario starts with."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from tests.support.desired_objects import parsed

from pdserve.desired.counts import CountsObserved, plan_counts
from pdserve.desired.ratio_input import budget_for, first_counts
from pdserve.ratio.types import Bounds, Counts, Range

BOUNDS = Bounds(Range(1, 4), Range(1, 4), Range(1, 4))
LOW, MID, HIGH = Counts(1, 1, 1), Counts(2, 2, 1), Counts(9, 9, 9)


def seen(**over: Any) -> CountsObserved:
    base = CountsObserved("Auto", BOUNDS, None, LOW, None, None, None)
    return dataclasses.replace(base, **over)


CASES: list[tuple[str, CountsObserved, Counts | None, str | None, bool]] = [
    # case, seen, applied, recorded reason, hand edit
    ("new", seen(), LOW, "InitialCounts", False),
    ("settled", seen(live=LOW, applied=LOW, applied_from=LOW), None, None, False),
    ("decided, not yet applied", seen(live=LOW, applied=MID, applied_from=LOW), MID, None, False),
    ("hand edit", seen(live=MID, applied=LOW, applied_from=LOW), LOW, None, True),
    ("bounds narrowed", seen(live=HIGH, applied=HIGH, applied_from=LOW), Counts(4, 4, 4),
     "BoundsChanged", False),
    ("found without a record", seen(live=MID), None, "InitialCounts", False),
    ("Advise keeps", seen(mode="Advise", live=MID, applied=MID, applied_from=LOW), None, None,
     False),
    ("Fixed", seen(mode="Fixed", fixed=MID, live=LOW, applied=LOW, applied_from=LOW), MID,
     "FixedCounts", False),
    ("Fixed, crash after the record",
     seen(mode="Fixed", fixed=MID, live=LOW, applied=MID, applied_from=LOW), MID, None, False),
    ("Fixed, hand edit", seen(mode="Fixed", fixed=MID, live=HIGH, applied=MID, applied_from=LOW),
     MID, None, True),
    ("External, new", seen(mode="External"), LOW, "InitialCounts", False),
    ("External, crash after the record", seen(mode="External", applied=LOW, applied_from=LOW), LOW,
     None, False),
    ("External, untouched", seen(mode="External", live=MID, applied=MID, applied_from=MID), None,
     None, False),
    ("External, set by others", seen(mode="External", live=HIGH, applied=MID, applied_from=MID),
     None, "ExternalOwner", False),
]  # fmt: skip


@pytest.mark.parametrize(("seen_", "apply", "reason", "edit"), [c[1:] for c in CASES],
                         ids=[c[0] for c in CASES])  # fmt: skip
def test_one_owner_of_the_counts(
    seen_: CountsObserved, apply: Counts | None, reason: str | None, edit: bool
) -> None:
    plan = plan_counts(seen_)
    assert plan.apply == apply
    assert (plan.record.reason if plan.record else None) == reason
    assert (plan.hand_edit is not None) == edit


NPU = "huawei.com/Ascend910"


def test_the_budget_left_to_a_scenario_counts_what_the_others_want() -> None:
    made = parsed(
        scenarios=("search", "chat"), devices=4, budget=[{"resource": NPU, "devices": 64}]
    )
    [left] = budget_for(made, "chat", {"search": Counts(2, 2, 1)})
    assert left.devices == 64 - 2 * 3 * 4
    [left] = budget_for(made, "chat", {})
    assert left.devices == 64 - 8, "a scenario without counts is taken at its minimum"


def test_the_budget_counts_the_spares_of_every_scenario() -> None:
    made = parsed(
        scenarios=("search", "chat"), devices=4, budget=[{"resource": NPU, "devices": 64}]
    )
    search, chat = made.spec.scenarios
    chat = chat.model_copy(update={"spares": 2})
    spec = made.spec.model_copy(update={"scenarios": (search, chat)})
    with_spares = made.model_copy(update={"spec": spec})
    wanted = {"search": Counts(2, 2, 1), "chat": Counts(3, 1, 1)}
    for name, own in (("chat", 2 * 3 * 4), ("search", 3 * 2 * 4)):
        [left] = budget_for(with_spares, name, wanted)
        assert left.devices == 64 - own - 3 * 2 * 4


def test_first_counts_stay_inside_bounds_and_say_why() -> None:
    sizing = first_counts(
        parsed(prefill=(2, 4)), parsed(prefill=(2, 4)).spec.scenarios[0], {}, None
    )
    assert sizing.counts == Counts(1, 2, 1)
    assert "lower bounds" in sizing.message
