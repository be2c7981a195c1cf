"""What reaction alone reaches: it knows the present exactly, and nothing of what comes."""

from __future__ import annotations

from pdserve.ratio.types import Counts
from pdserve.sim.closed_loop import run
from pdserve.sim.experiments import run_reaction
from pdserve.sim.policies.reaction import Reaction
from pdserve.sim.shapes import TrafficShape

STEP = TrafficShape(
    "step", ((0.0, 4.0), (240.0, 4.0), (240.0, 12.0), (480.0, 12.0)), 480.0, Counts(1, 1, 2)
)


def test_it_acts_at_once_and_not_before() -> None:
    changes = [(c.time, c.counts) for c in run(STEP, Reaction, 1).changes]
    assert [time for time, _ in changes if time > 120.0] == [240.0]
    before, after = changes[-2][1], changes[-1][1]
    assert after.decode > before.decode


def test_what_it_misses_is_lost_while_instances_start() -> None:
    line = run_reaction(STEP, 1)
    late = [
        k for k, share in enumerate(line.series.attainment) if share is not None and share < 0.97
    ]
    assert late in ([4], [4, 5]), "the minute after the step, and what that left behind"
