"""The simulation of hostile schedules: it replays, it forks, it judges, it cuts failures down."""

from __future__ import annotations

import pytest

from pdserve.dst import runner, schedule
from pdserve.dst.steps import STEPS


def test_a_seed_draws_the_same_steps_and_leaves_out_none() -> None:
    assert schedule.draw(7) == schedule.draw(7)
    drawn = {move.kind for seed in range(400) for move in schedule.draw(seed)}
    assert drawn == set(STEPS)


@pytest.mark.invariant(8)
@pytest.mark.parametrize("seed", [4, 9])
def test_the_same_seed_makes_the_operator_write_the_same(seed: int) -> None:
    first, again = (runner.run_one(seed, writes=True) for _ in range(2))
    assert first.writes
    assert first.writes == again.writes
    assert first.trace == again.trace


def test_outcomes_of_all_seeds_come_from_all_processes() -> None:
    seeds = {outcome.seed for outcome in runner.run_many(10, 6, 2)}
    assert seeds == set(range(10, 16))
