"""The bench of the paper's figures: the adjusted P/D ratio beside fixed ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import paper
from benchmarks.parts import paper_ratio
from benchmarks.parts.paper_ratio import Setting, attained, best_of, bound, throughput

WIDE = Setting(4, "1200+200", 1.0)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_ratio, "SECONDS", 20.0)
    monkeypatch.setattr(paper_ratio, "SETTLE", 180.0)
    monkeypatch.setattr(paper_ratio, "STEPS", 4)


@pytest.mark.usefixtures("short")
def test_throughput_is_the_highest_rate_that_meets_the_target() -> None:
    rate = throughput(WIDE, 2, seed=1)
    assert attained(WIDE, 2, rate, 1) >= 0.99 > attained(WIDE, 2, 2 * rate, 1)
    assert rate < bound(WIDE, 2)


def test_no_counts_serve_more_than_their_scarcer_role() -> None:
    assert bound(WIDE, 3) == pytest.approx(bound(WIDE, 2) / 2), "decodes: one in place of two"
    assert bound(Setting(12, "3000+100", 1.0), 2) == pytest.approx(
        2 * bound(Setting(12, "3000+100", 1.0), 1)
    ), "prefills: two in place of one"


def test_gains_are_over_the_ratio_of_the_mix_before_and_over_the_others() -> None:
    results = {
        Setting(4, "1200+200", 1.0): [{"1": 5.0, "2": 10.0, "3": 4.0, "loop": 2.0}],
        Setting(4, "3000+100", 1.0): [{"1": 2.0, "2": 5.0, "3": 8.0, "loop": 2.0}],
    }
    drifted, others, rivals = paper_ratio.claims(results)
    assert {p.assumed: p.mean for p in drifted.points} == pytest.approx({
        "4 instances, 1200+200 tokens, TTFT 1 s, was 3000+100": 150.0,
        "4 instances, 3000+100 tokens, TTFT 1 s, was 1200+200": 60.0,
    })  # fmt: skip
    assert [p.assumed for p in drifted.yielding()] == [
        "4 instances, 3000+100 tokens, TTFT 1 s, was 1200+200"
    ]
    assert sorted(round(p.mean) for p in others.points) == [60, 100, 150, 300]
    assert sorted(round(p.mean) for p in rivals.points) == [60, 100]
    (row,) = paper_ratio.rows(results)
    assert row.value == pytest.approx((100 + 62.5) / 2)
    assert not row.ok, "a loop that stays where it began misses the floor"


def test_the_best_ratio_is_that_of_the_mean_over_seeds() -> None:
    assert best_of([{"1": 5.0, "2": 4.0}, {"1": 5.0, "2": 9.0}]) == 2


@pytest.mark.usefixtures("short")
def test_a_tiny_run(tmp_path: Path) -> None:
    claims, rows = paper.measured(["ratio"], 1, 1, {"ratio": [WIDE]}, tmp_path)
    assert claims[0].what == "throughput, best ratio over each other ratio"
    assert claims[0].low.mean >= 0
    assert 0 < rows[0].value <= 100
