"""Sixteen gateways before the same prefills: what forwarding costs, and whom it serves."""

from __future__ import annotations

import pytest
from tests.support.many_gateways import ExcludeAndRetry, OnDemand, PairWalk, run

GATEWAYS = 16


@pytest.mark.parametrize("prefills", [4, 16, 64])
@pytest.mark.parametrize(("load", "most"), [(0.5, 3), (0.95, 9), (1.2, 12)])
def test_a_request_asks_few_times_and_none_ends_for_want_of_attempts(
    load: float, most: float, prefills: int
) -> None:
    tally = run(OnDemand, GATEWAYS, prefills, load, 10.0)
    assert tally.mean <= most
    assert tally.out_of_attempts == 0
    assert tally.served >= 0.9 * min(1.0, 1 / load)


@pytest.mark.parametrize("load", [0.95, 1.2])
def test_a_walk_without_a_pause_gives_up_where_forwarding_serves(load: float) -> None:
    ours, walk = (run(policy, GATEWAYS, 16, load, 10.0) for policy in (OnDemand, PairWalk))
    assert ours.served > walk.served + 0.05
    assert walk.given_up > 0.05


def test_retries_are_bounded_where_a_policy_bounds_them() -> None:
    tally = run(ExcludeAndRetry, GATEWAYS, 16, 1.2, 10.0)
    assert tally.most == 4
    assert tally.given_up > 0.05
    assert tally.in_time + tally.out_of_attempts <= tally.offered
