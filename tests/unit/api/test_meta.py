"""Conditions keep their transition time; times are written as Kubernetes writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pdserve.api import Condition, merge_conditions
from pdserve.terms.times import rfc3339


@dataclass(frozen=True)
class Want:
    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str = "Because"
    message: str = ""


START = 1_800_000_000.0


def test_a_new_condition_gets_the_time_of_now() -> None:
    (ready,) = merge_conditions((), [Want("Ready", "False")], 3, START)
    assert ready == Condition(
        type="Ready",
        status="False",
        reason="Because",
        last_transition_time="2027-01-15T08:00:00Z",
        observed_generation=3,
    )


def test_transition_time_changes_only_with_the_status() -> None:
    first = merge_conditions((), [Want("Ready", "False")], 1, START)
    same = merge_conditions(first, [Want("Ready", "False", "Other", "new words")], 2, START + 60)
    assert same[0].last_transition_time == first[0].last_transition_time
    assert (same[0].reason, same[0].message, same[0].observed_generation) == (
        "Other",
        "new words",
        2,
    )
    changed = merge_conditions(same, [Want("Ready", "True")], 2, START + 120)
    assert changed[0].last_transition_time == rfc3339(START + 120)


def test_conditions_are_sorted_and_unnamed_ones_kept() -> None:
    first = merge_conditions((), [Want("Ready", "True"), Want("Linked", "True")], 1, START)
    second = merge_conditions(first, [Want("Placed", "True")], 1, START + 1)
    assert [c.type for c in second] == ["Linked", "Placed", "Ready"]


def test_long_messages_are_cut() -> None:
    (ready,) = merge_conditions((), [Want("Ready", "True", message="x" * 9000)], 1, START)
    assert len(ready.message) == 4096
