"""Tables of many runs: geometric means over shapes, spreads over seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pdserve.ratio.types import Counts
from pdserve.sim.closed_loop import CountsChange
from pdserve.sim.kernel import layout
from pdserve.sim.results import RunResult, turns, worst_window
from pdserve.sim.summary import RunCell, policy_table, run_table, summarise


def cell(shape: str, seed: int, hours: float, attained: float, policy: str = "ours") -> RunCell:
    result = RunResult(hours, 1000.0, 0.0, attained, 0.9, 1.0, 0.0, 0.0, 0.0, 2, 3, 9, ())
    return RunCell(shape, policy, seed, result, 0.99)


CELLS = [
    cell("a", 1, 20.0, 0.995), cell("b", 1, 40.0, 0.97),
    cell("a", 2, 10.0, 1.0), cell("b", 2, 10.0, 0.99),
]  # fmt: skip
BEST = {("a", 1): 10.0, ("b", 1): 10.0, ("a", 2): 10.0, ("b", 2): 10.0}


def test_a_policys_cost_is_a_geometric_mean_and_its_spread_is_over_seeds() -> None:
    (found,) = summarise(CELLS, BEST)
    assert found.cost == pytest.approx(8 ** (1 / 4))
    assert found.cost_spread == pytest.approx(math.sqrt(8.0) - 1.0)
    assert found.attained == pytest.approx((0.995 + 0.97 + 1.0 + 0.99) / 4)
    assert found.attained_spread == pytest.approx(0.995 - 0.9825)
    assert found.at_target == 1.5
    assert found.runs == 4
    assert "1.682" in policy_table([found])


def test_without_a_clairvoyant_there_is_no_ratio() -> None:
    (found,) = summarise(CELLS, {})
    assert found.cost is None
    assert " - " in run_table(CELLS[:1], {})
    assert " 2.00 " in run_table(CELLS[:1], BEST)


def test_the_worst_ten_minutes_leave_out_what_is_infeasible() -> None:
    minutes = np.zeros((30, layout.LENGTH_BUCKETS, layout.B_COLUMNS))
    minutes[:, 0, layout.B_OFFERED] = 100.0
    minutes[:, 0, layout.B_MET] = 100.0
    minutes[12, 0, layout.B_MET] = 0.0
    minutes[13, 0, layout.B_MET] = 50.0
    minutes[13, 0, layout.B_INFEASIBLE] = 50.0
    assert worst_window(minutes) == pytest.approx((1000 - 150) / (1000 - 50))
    assert worst_window(minutes[:3]) == 1.0


def test_turns_count_changes_of_direction() -> None:
    counts = [2, 3, 5, 4, 4, 6, 5]
    changes = [CountsChange(float(i), Counts(1, n, 1), "") for i, n in enumerate(counts)]
    assert turns(changes, "prefill") == 3
    assert turns(changes, "decode") == 0
