"""The list of decisions in a ScenarioGroup's status: what is kept, and what counts as news."""

from __future__ import annotations

from typing import Any

import pytest

from pdserve.api import DecisionRecord
from pdserve.desired.decisions import KEPT, appended, entry, is_news
from pdserve.ratio.types import Counts

LOW, MID = Counts(1, 1, 1), Counts(2, 2, 1)


def decision(outcome: str, n: int = 0, reason: str = "Steady") -> dict[str, Any]:
    return entry(
        time=1e9 + n, before=LOW, to=MID if outcome == "Applied" else LOW, outcome=outcome,
        reason=reason, message="m", inputs={"rate": "1.5"},
    )  # fmt: skip


def test_the_newest_applied_decision_is_never_pushed_out() -> None:
    entries: list[dict[str, Any]] = []
    entries = appended(entries, decision("Applied", 0, "Old"))
    entries = appended(entries, decision("Applied", 1, "New"))
    for n in range(2, 40):
        entries = appended(entries, decision("Held", n))
    assert len(entries) == KEPT
    assert [e["reason"] for e in entries if e["outcome"] == "Applied"] == ["New"]
    assert entries[-1]["time"] > entries[-2]["time"]


@pytest.mark.parametrize(
    ("outcome", "reason", "news"),
    [("Held", "Steady", False), ("Held", "HoldNoData", True), ("Blocked", "Steady", True),
     ("Applied", "Steady", True)],
)  # fmt: skip
def test_what_counts_as_news(outcome: str, reason: str, news: bool) -> None:
    old = DecisionRecord.parse(decision("Held"))
    assert is_news(old, decision(outcome, 1, reason)) is news
    assert is_news(None, decision("Held"))


def test_an_entry_fits_the_schema_whatever_its_size() -> None:
    big = entry(
        time=0, before=LOW, to=MID, outcome="Applied", reason="ModelFloor", message="x" * 5000,
        inputs={f"key{n}": "1" for n in range(60)},
    )  # fmt: skip
    DecisionRecord.parse(big)
