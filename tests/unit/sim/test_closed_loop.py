"""Policies in closed loop with the plant: the real loop, and what all of them must keep to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pdserve.ratio.records import record, replay
from pdserve.ratio.types import Bounds, Counts, Range, Reason
from pdserve.sim.closed_loop import Run, run
from pdserve.sim.policies.base import PolicyWorld
from pdserve.sim.policies.pdserve import PdserveLoop
from pdserve.sim.policies.registry import POLICIES
from pdserve.sim.results import judge
from pdserve.sim.shapes import DRAWN, Fault, TrafficShape

SHORT = replace(
    DRAWN["step_x2"],
    points=((0, 4), (240, 4), (240, 12), (660, 12)),
    duration=660.0,
    start=Counts(1, 1, 2),
    bounds=Bounds(Range(1, 1), Range(1, 6), Range(1, 9)),
)


def loop(shape: TrafficShape, seed: int = 1) -> tuple[Run, PdserveLoop]:
    """Our own loop on a shape, and what it decided."""
    kept: list[PdserveLoop] = []

    def make(world: PolicyWorld) -> PdserveLoop:
        kept.append(PdserveLoop(world))
        return kept[0]

    return run(shape, make, seed), kept[0]


def test_the_real_loop_grows_after_a_step_and_its_decisions_replay() -> None:
    done, policy = loop(SHORT)
    assert done.changes[0].counts == SHORT.start
    assert [c for c in done.changes if 240 < c.time < 440], "growth within 200 s of the step"
    last = done.changes[-1].counts
    assert last.prefill >= 2
    assert last.decode >= 4
    pairs = list(zip(policy.inputs, policy.decisions, strict=True))
    assert all(replay(record(*pair))[2] for pair in pairs[::10])
    first = policy.inputs[0].profile
    assert first is None or first.source == "learned", "a policy is given no profile"


def test_the_learned_profile_comes_near_the_plants_own() -> None:
    _, policy = loop(replace(SHORT, points=((0, 9), (660, 9)), start=Counts(1, 2, 3)))
    found = policy.inputs[-1].profile
    assert found is not None
    truth = policy.world.profile
    assert found.source == "learned"
    for batch in (8, 24):
        wanted = truth.decode.step_seconds(batch, 1300.0)
        assert found.decode.step_seconds(batch, 1300.0) == pytest.approx(wanted, rel=0.2)


def test_a_run_is_a_function_of_its_seed() -> None:
    found = [loop(replace(SHORT, duration=480.0), seed) for seed in (2, 2, 3)]
    results = [judge(done) for done, _ in found]
    assert results[0] == results[1] != results[2]
    assert found[0][0].changes == found[1][0].changes
    assert found[0][1].decisions == found[1][1].decisions


def test_without_metrics_nothing_scales() -> None:
    done, policy = loop(replace(SHORT, outage=(0.0, 300.0), duration=300.0))
    assert len(done.changes) == 1
    assert {d.reason for d in policy.decisions} == {Reason.HOLD_NO_DATA}


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_keeps_to_bounds_and_budget_whatever_fails(name: str) -> None:
    shape = replace(
        SHORT,
        points=((0, 3), (150, 3), (150, 10), (400, 10)),
        duration=400.0,
        budget=7,
        faults=(Fault(300.0, "decode"), Fault(320.0, "prefill", 2.0)),
    )
    found = run(shape, POLICIES[name], 2)
    for change in found.changes:
        assert shape.bounds.clamp(change.counts) == change.counts
        assert change.counts.prefill + change.counts.decode <= 7
    result = judge(found)
    assert result.offered == pytest.approx(150 * 3 + 250 * 10, rel=0.1)
    assert result.failed > 0, "streams of the lost decode"
    assert 0.0 < result.worst <= result.attainment <= 1.0


def test_hopeless_prompts_are_infeasible_and_do_not_count_against_the_policy() -> None:
    long = replace(SHORT.mixes[0], prompt=20_000.0)
    shape = replace(SHORT, mixes=(long,), spread=0.01, duration=120.0, points=((0, 2), (120, 2)))
    result = judge(run(shape, POLICIES["fixed-start"], 1))
    assert result.infeasible == result.expired == 1.0
    assert sum(b.infeasible for b in result.buckets) == result.offered
