"""The bench of conditional disaggregation: what it offers, and which row holds the floor."""

from __future__ import annotations

import pytest
from benchmarks.conditional import SECONDS, row
from benchmarks.parts.conditional_world import FACTOR, MODES, Outcome, capacity, targets


def outcomes(*goodput: float) -> list[Outcome]:
    return [Outcome(each, 9.0, 0.5, 0.1, 0.05) for each in goodput]


@pytest.mark.parametrize(
    ("ours", "ok"), [(5.0, True), (4.76, True), (4.74, False), (6.0, True), (0.0, False)]
)
def test_the_row_without_an_addition_is_beside_the_better(ours: float, ok: bool) -> None:
    found = {
        "Auto": outcomes(ours, ours),
        "always split": outcomes(3.0, 5.0),
        "never split": outcomes(4.0, 6.0),
    }
    assert set(found) == set(MODES)
    rows = {r.vs: r for r in row(512, found)}
    assert rows["never split"].what == "goodput, 512 prompt tokens"
    assert rows["always split"].what.endswith("beside the other")
    assert rows["never split"].ok is ok
    assert (rows["never split"].n, rows["always split"].reference) == (2, 4.0)


def test_a_mode_that_serves_nothing_is_no_error() -> None:
    found = {mode: outcomes(0.0) for mode in MODES}
    assert not any(r.ok for r in row(32, found))


def test_longer_prompts_come_less_often_and_may_take_longer() -> None:
    lengths = list(SECONDS)
    assert lengths == sorted(lengths)
    assert [capacity(n) for n in lengths] == sorted(map(capacity, lengths), reverse=True)
    ttft = [targets(n).ttft for n in lengths]
    assert ttft == sorted(ttft)
    assert ttft[0] > 0.2 * FACTOR
    assert min(capacity(n) * SECONDS[n] for n in lengths) > 20, "enough requests to tell"
