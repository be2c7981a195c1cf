"""Records of instances across route tables, and the budget of second prefills."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pdserve.forwarding.budget import LEAST_RESERVE, RetryBudget
from pdserve.forwarding.instance import BACKOFF_MAX, Instance
from pdserve.forwarding.scenario_view import View
from pdserve.wire.routes import RouteGroup, RouteInstance, RouteScenario, Slo

P0 = RouteInstance("p0", "prefill", "http://10.0.0.1:8000", 2)
D0 = RouteInstance("d0", "decode", "http://10.0.0.2:8000", 4)


def scenario(*instances: RouteInstance) -> RouteScenario:
    return RouteScenario("s", Slo(1.0, 0.2, 0.05, 0.99), (RouteGroup(0, "r", instances),))


@pytest.mark.parametrize(
    ("change", "kept"),
    [({}, True), ({"slots": 8}, True), ({"endpoint": "http://10.0.0.9:8000"}, False)],
    ids=["as it was", "other slots", "another endpoint"],
)
def test_an_id_at_a_new_endpoint_is_a_new_instance(change: dict[str, object], kept: bool) -> None:
    """What was learned of a pod says nothing of the one that took its name."""
    view = View(scenario(P0, D0), {})
    record = view.groups[0].prefills[0]
    record.sent(0.0)
    view.update(scenario(replace(P0, **change), D0), {})  # type: ignore[arg-type]
    now = view.groups[0].prefills[0]
    assert (now is record) is kept
    assert now.used == (1 if kept else 0)
    assert now.route == replace(P0, **change)  # type: ignore[arg-type]
    assert next(iter(view.instances())) is now


def test_of_a_hundred_requests_five_may_have_a_second_prefill() -> None:
    budget = RetryBudget()
    while budget.take():
        pass
    taken = 0
    for _ in range(1000):
        budget.earn()
        taken += budget.take()
    assert 49 <= taken <= 50


def test_the_budget_is_never_above_its_reserve() -> None:
    budget = RetryBudget(fraction=0.05, reserve=3)
    for _ in range(1000):
        budget.earn()
    assert [budget.take() for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize(
    ("spent", "slots", "want"),
    [
        (0, 100, 100.0),
        (5, 100, 95.0),
        (0, 1, float(LEAST_RESERVE)),
        (LEAST_RESERVE, 1, 0.0),
    ],
    ids=["all slots", "what was spent stays spent", "at least the reserve", "nothing left"],
)
def test_the_reserve_covers_the_slots_that_one_fault_may_take(
    spent: int, slots: int, want: float
) -> None:
    budget = RetryBudget()
    for _ in range(spent):
        assert budget.take()
    budget.cover(slots)
    assert budget.available == want


def test_a_reserve_that_shrinks_never_goes_below_nothing() -> None:
    budget = RetryBudget()
    budget.cover(100)
    for _ in range(90):
        assert budget.take()
    budget.cover(50)
    assert budget.available == 0.0
    assert not budget.take()


def test_the_pause_after_refusals_doubles_up_to_its_bound() -> None:
    prefill = Instance(P0, 0)
    pauses = []
    for _ in range(12):
        prefill.sent(0.0)
        prefill.rejected(None, 0.0)
        pauses.append(prefill.next_try(0.0))
    assert pauses[:5] == pytest.approx([0.005, 0.010, 0.020, 0.040, 0.080])
    assert set(pauses[5:]) == {BACKOFF_MAX}
