"""The simulation of hostile schedules: it replays, it forks, it judges, it cuts failures down."""

from __future__ import annotations

import json

import pytest

from pdserve.cli.main import main
from pdserve.dst import runner, schedule
from pdserve.dst.plants import PLANTS, Plant, plant_of, planted
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


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_planted_fault_is_found(plant: Plant) -> None:
    outcome = runner.find(plant)
    assert outcome is not None, plant.fault
    assert outcome.trace


def test_a_plant_is_gone_afterwards() -> None:
    for plant in PLANTS:
        before = [vars(owner)[name] for owner, name, _ in plant.changes()]
        with planted(plant):
            assert [vars(owner)[name] for owner, name, _ in plant.changes()] != before
        assert [vars(owner)[name] for owner, name, _ in plant.changes()] == before


def test_no_invariant_breaks_in_sixty_schedules() -> None:
    broken = [f"{o.seed}: {o.violation}" for o in runner.run_many(20_000, 60, 1) if o.violation]
    assert not broken


def test_a_schedule_that_computes_for_ever_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own computing: how busy the machine is does not count."""

    async def play(*_: object) -> schedule.Outcome:
        while True:
            pass

    monkeypatch.setattr(schedule, "CPU_SECONDS", 1)
    monkeypatch.setattr(schedule, "play", play)
    [outcome] = runner.run_many(10, 1, 1)
    assert (outcome.violation, outcome.number) == ("not done after 1 s of computing", 10)


def test_a_failing_schedule_is_cut_down_and_says_what_was_done() -> None:
    plant = plant_of("outage-is-silence")
    with planted(plant):
        moves, outcome = runner.cut_down(plant.first)
    assert 0 < len(moves) < len(schedule.draw(plant.first))
    assert outcome.number in plant.numbers
    assert all(any(move.kind in line for line in outcome.trace) for move in moves)


def test_the_command_exits_by_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dst", "--seeds", "2", "--jobs", "1", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["schedules"] == 2
    with planted(plant_of("routes-unlinked")):
        assert main(["dst", "--replay", "10"]) == 1
    shown = capsys.readouterr().out
    assert "invariant 1" in shown and "the same with" in shown
