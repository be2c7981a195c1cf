"""The right size in time: up before the queue, down at once, steady in between."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.loop_runs import (
    TRUTH,
    LoopRun,
    constant,
    least,
    loop_run,
    lost,
    most_above,
    shape,
    step,
)

from pdserve.ratio import learn
from pdserve.ratio.choose import CountLimits
from pdserve.ratio.initial import initial_counts
from pdserve.ratio.presets import dilated
from pdserve.ratio.types import Bounds, Counts, ExpectedTraffic, Range, Reason, RoleDevices
from pdserve.sim.policies.pdserve import PdserveLoop
from pdserve.sim.shapes import Mix

STEP_AT = 1200.0


@pytest.mark.parametrize("cold_start", [60.0, 300.0])
def test_a_step_is_recovered_from_within_the_cold_start_and_a_minute(cold_start: float) -> None:
    """The cold start is not known beforehand, and growth goes on while instances start."""
    case = shape(step(3.75, 7.5, STEP_AT, 3300.0), Counts(1, 2, 5), cold_start=cold_start)
    done = loop_run(case)
    assert done.healthy_minute_after(STEP_AT) <= STEP_AT + cold_start + 60.0
    assert most_above(done.counts_at(STEP_AT + 1200.0), least(7.5)) <= 1


def test_demand_is_known_half_a_minute_after_a_step() -> None:
    """Counted at arrival: nothing of the new load has ended by then."""
    done = loop_run(shape(step(5.75, 10.0, STEP_AT, STEP_AT + 60.0), Counts(1, 3, 7)))
    seen = [d for d in done.decisions if d.time <= STEP_AT + 30.0][-1]
    assert float(dict(seen.inputs)["rate"]) >= 9.0


def test_a_tight_role_does_not_keep_the_other_one_large() -> None:
    """4P12D where 8 decodes do; 4 prefills are just enough."""
    done = loop_run(shape(constant(7.5, 1500.0), Counts(1, 4, 12)))
    enough = least(7.5)
    assert done.counts_at(600.0).decode <= enough.decode + 1
    assert done.attainment >= 0.99


def test_most_of_a_surplus_goes_within_a_quarter_of_an_hour() -> None:
    done = loop_run(shape(step(9.0, 0.5, 900.0, 2400.0), Counts(1, 4, 9)))
    assert done.counts_at(1800.0) == Counts(1, 1, 1)


def test_no_role_moves_while_every_request_meets_the_target() -> None:
    """The profile says that everything takes half as long again as it does."""

    def prepare(loop: PdserveLoop) -> None:
        loop.state = learn.start("sim", 4, 64, preset=dilated(TRUTH, 1.5))

    done = loop_run(shape(constant(5.0, 3600.0), Counts(1, 3, 6)), prepare=prepare)
    assert done.attainment > 0.999
    assert [d for d in done.growths if d.time > 1800.0] == []
    assert [d for d in done.changes if lost([d], "prefill") and lost([d], "decode") == 0] == []


def test_one_request_a_minute_grows_nothing() -> None:
    done = loop_run(shape(constant(1 / 60, 3600.0), Counts(1, 1, 1)))
    assert done.growths == []


def test_late_metrics_are_acted_on() -> None:
    done = loop_run(shape(step(3.75, 7.5, STEP_AT, 2700.0), Counts(1, 2, 5), delay=30.0))
    held = [d for d in done.decisions if d.reason is Reason.HOLD_NO_DATA and d.time > 120.0]
    assert held == []
    assert done.healthy_minute_after(STEP_AT) <= STEP_AT + 60.0 + 60.0 + 30.0
    assert most_above(done.counts_at(2400.0), least(7.5)) <= 1


def test_without_metrics_nothing_scales_and_the_hold_says_why() -> None:
    away = (STEP_AT - 100.0, STEP_AT + 300.0)
    done = loop_run(shape(step(3.75, 7.5, STEP_AT, 2400.0), Counts(1, 2, 5), outage=away))
    assert done.between(*away) == []
    held = [d for d in done.decisions if away[0] <= d.time < away[1]]
    assert {d.reason for d in held} == {Reason.HOLD_NO_DATA}
    assert all("does not answer" in d.message for d in held)
    assert done.healthy_minute_after(away[1]) <= away[1] + 60.0 + 60.0


def test_lost_load_that_comes_back_in_waves_is_not_given_up_each_time() -> None:
    """Each valley is as long as a surplus must last by itself."""
    waves = [(450.0 * k + s, 7.0 if k % 2 else 3.0) for k in range(12) for s in (0.0, 450.0)]
    done = loop_run(shape(tuple(waves), Counts(1, 2, 4)))
    late = done.between(2700.0, 5400.0)
    assert lost(late, "decode") <= 3, [(d.time, str(d.to)) for d in late]


def test_the_first_counts_come_from_what_is_expected() -> None:
    """30/s at first were served by 1P1D; the preset may be a tenth off."""
    announced = ExpectedTraffic(1200.0, 200.0, 7.5)
    gpu = RoleDevices("gpu", 8)
    limits = CountLimits(Bounds(Range(1, 1), Range(1, 40), Range(1, 40)), gpu, gpu)
    enough = least(7.5)
    wanted = enough.prefill + enough.decode
    from tests.support.loop_runs import SLO

    for off in (0.9, 1.0, 1.1):
        found = initial_counts(limits, SLO, announced, dilated(TRUTH, off)).counts
        assert abs(found.prefill + found.decode - wanted) <= 0.2 * wanted + 1


@pytest.mark.parametrize("rate", [1.0, 4.0])
def test_capacity_is_right_or_inside_its_interval_after_ten_minutes(rate: float) -> None:
    """At one request a second decodes run almost empty."""
    profile = _learned(loop_run(shape(constant(rate, 660.0), Counts(1, 2, 4))))
    truth = TRUTH.decode.step_seconds(40, 1300.0)
    found = profile.decode.step_seconds(40, 1300.0)
    error = profile.decode.step_error(40, 1300.0)
    assert abs(found / truth - 1.0) <= 0.15 or abs(found - truth) <= 2 * error


def test_an_interval_is_wide_where_nothing_was_seen_and_narrow_where_it_was() -> None:
    profile = _learned(loop_run(shape(constant(1.0, 660.0), Counts(1, 2, 4))))
    seen = profile.decode.step_error(2, 1300.0) / profile.decode.step_seconds(2, 1300.0)
    unseen = profile.decode.step_error(60, 1300.0) / profile.decode.step_seconds(60, 1300.0)
    assert seen < 0.05 < unseen


def _learned(done: LoopRun):  # type: ignore[no-untyped-def]
    profile = done.profile
    assert profile is not None
    return profile


def test_a_shift_of_lengths_is_followed_in_both_roles() -> None:
    mixes = (Mix(0.0, 1200.0, 200.0), Mix(1200.0, 600.0, 400.0))
    done = loop_run(replace(shape(constant(3.0, 3000.0), Counts(1, 2, 4)), mixes=mixes))
    assert most_above(done.counts_at(2700.0), least(3.0, 600.0, 400.0)) <= 1
    assert done.healthy_minute_after(1200.0) <= 1200.0 + 60.0 + 120.0
