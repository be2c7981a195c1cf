"""No role depends on one instance beside many of the other."""

from __future__ import annotations

import pytest
from tests.support.loop_runs import constant, loop_run, shape

from pdserve.ratio.redundancy import is_redundant
from pdserve.ratio.types import Bounds, Counts, Range
from pdserve.sim.shapes import Mix

COUNTS = [
    (Counts(1, 1, 3), True),
    (Counts(1, 1, 4), False),
    (Counts(2, 1, 2), True),
    (Counts(1, 2, 9), True),
    (Counts(1, 9, 1), False),
]


@pytest.mark.parametrize(("counts", "want"), COUNTS, ids=[str(c) for c, _ in COUNTS])
def test_which_counts_have_no_instance_that_all_depends_on(counts: Counts, want: bool) -> None:
    assert is_redundant(counts) is want


def test_a_lone_prefill_beside_decodes_that_are_needed_gets_a_second_one_and_keeps_it() -> None:
    case = shape(constant(4.0, 1800.0), Counts(1, 1, 5), mixes=(Mix(0.0, 300.0, 400.0),))
    done = loop_run(case)
    assert done.counts_at(300.0).prefill == 2
    assert done.counts_at(1800.0).prefill == 2


def test_bounds_that_allow_one_are_kept_without_a_complaint() -> None:
    bounds = Bounds(Range(1, 1), Range(1, 1), Range(1, 40))
    case = shape(
        constant(4.0, 900.0), Counts(1, 1, 5), mixes=(Mix(0.0, 300.0, 400.0),), bounds=bounds
    )
    done = loop_run(case)
    assert done.counts_at(900.0).prefill == 1
    assert all(d.outcome != "Blocked" for d in done.decisions)
