"""Waiting in front of slots, against tables, limits and a simulation."""

from __future__ import annotations

import heapq
import math
import random

import pytest

from pdserve.ratio.queueing import (
    FLUID_LOAD,
    FLUID_SLOTS,
    MAX_SLOTS,
    inverse_erlang_b,
    late_share,
    wait_exceeds,
)


@pytest.mark.parametrize(
    ("slots", "utilisation"), [(2, 0.17), (4, 0.42), (8, 0.64), (16, 0.79), (64, 0.94)]
)
def test_utilisation_table_for_one_percent_waiting_longer_than_a_service(
    slots: int, utilisation: float
) -> None:
    assert wait_exceeds(slots, (utilisation - 0.006) * slots, 1.0) <= 0.01
    assert wait_exceeds(slots, (utilisation + 0.01) * slots, 1.0) > 0.01


def test_one_slot_is_m_m_1() -> None:
    for rho in (0.1, 0.5, 0.9):
        for slack in (0.0, 0.5, 3.0):
            assert wait_exceeds(1, rho, slack) == pytest.approx(rho * math.exp(-(1 - rho) * slack))


def test_erlang_b_against_its_definition() -> None:
    load, slots = 7.0, 9
    terms = [load**k / math.factorial(k) for k in range(slots + 1)]
    assert 1 / inverse_erlang_b(slots, load) == pytest.approx(terms[-1] / sum(terms))


def test_extremes() -> None:
    assert wait_exceeds(4, 0.0, 1.0) == 0.0
    assert wait_exceeds(4, 4.0, 1.0) == 1.0
    assert wait_exceeds(4, 1.0, -0.1) == 1.0
    assert late_share(4, 0.0, 1.0) == 0.0
    assert late_share(4, 1.0, -0.1) == 1.0
    assert late_share(3, 3.0, 1.0) == pytest.approx(late_share(3, 3.0 + 1e-7, 1.0), abs=1e-6)


def test_overload_serves_exactly_the_capacity() -> None:
    for overload in (1.5, 2.0, 10.0):
        assert late_share(200, 200 * overload, 1.0) == pytest.approx(1 - 1 / overload, abs=1e-3)


def test_the_fluid_shortcut_joins_smoothly() -> None:
    for slack in (0.0, 0.3, 2.0):
        below = late_share(FLUID_SLOTS, (FLUID_LOAD - 1e-9) * FLUID_SLOTS, slack)
        assert late_share(FLUID_SLOTS, FLUID_LOAD * FLUID_SLOTS, slack) == pytest.approx(
            below, abs=0.02
        )


def test_late_share_without_patience_is_erlang_b() -> None:
    assert late_share(8, 6.0, 0.0) == pytest.approx(1 / inverse_erlang_b(8, 6.0))


def test_late_share_rises_with_load_and_falls_with_slots_and_slack() -> None:
    by_load = [late_share(8, load, 1.0) for load in (1, 4, 7, 8, 9, 16, 80)]
    assert by_load == sorted(by_load)
    by_slots = [late_share(slots, 8.0, 1.0) for slots in (4, 8, 12, 16)]
    assert by_slots == sorted(by_slots, reverse=True)
    by_slack = [late_share(8, 8.0, slack) for slack in (0.0, 0.5, 1.0, 4.0)]
    assert by_slack == sorted(by_slack, reverse=True)


def test_many_slots_are_bounded_work() -> None:
    assert wait_exceeds(100 * MAX_SLOTS, 90 * MAX_SLOTS, 1.0) == wait_exceeds(
        MAX_SLOTS, 0.9 * MAX_SLOTS, 1.0
    )


@pytest.mark.parametrize(("slots", "load", "slack"), [(3, 2.4, 0.5), (6, 7.5, 1.0), (1, 0.7, 2.0)])
def test_late_share_matches_a_simulated_m_m_n_with_deadlines(
    slots: int, load: float, slack: float
) -> None:
    rng = random.Random(7)
    free = [0.0] * slots
    heapq.heapify(free)
    now, late, total = 0.0, 0, 120_000
    for _ in range(total):
        now += rng.expovariate(load)
        if free[0] - now > slack:
            late += 1
        else:
            heapq.heapreplace(free, max(free[0], now) + rng.expovariate(1.0))
    assert late / total == pytest.approx(late_share(slots, load, slack), rel=0.05)
