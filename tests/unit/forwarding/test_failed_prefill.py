"""Where a request goes that a prefill has failed."""

from __future__ import annotations

import random

import pytest
from tests.support.dispatch_world import scenario

from pdserve.forwarding.dispatch import Dispatcher
from pdserve.forwarding.scenario_view import View


class Failed:
    """One request with 10 s left, which prefill g0p0 of two has just failed."""

    def __init__(self, seed: int = 1) -> None:
        self.view = View(scenario(([1, 1], [64])), {})
        self.bad, self.good = self.view.groups[0].prefills
        self.dispatcher = Dispatcher(self.view, random.Random(seed).random)
        ticket = self.dispatcher.offer(10.0)
        assert ticket is not None
        self.dispatcher.withdraw(ticket)
        self.ticket = ticket
        self.dispatcher.failed(ticket, self.bad, 0.0)

    def asked(self, now: float) -> list[str]:
        """Ids of the prefills that the next step asks."""
        if not self.ticket.waiting:
            self.dispatcher.back(self.ticket, now)
        self.step = self.dispatcher.step(now)
        return [send.prefill.id for send in self.step.sends]


@pytest.mark.parametrize("seed", range(8))
def test_a_request_goes_to_the_prefill_that_has_not_failed_it(seed: int) -> None:
    assert Failed(seed).asked(0.0) == ["g0p1"]


def test_it_waits_for_the_other_while_that_is_busy_for_half_of_its_time() -> None:
    made = Failed()
    made.good.sent(0.0)
    assert made.asked(0.0) == []
    assert made.step.wake_at == 5.0
    assert made.asked(5.0) == ["g0p0"]


def test_requests_behind_it_do_not_wait_with_it() -> None:
    made = Failed()
    made.good.sent(0.0)
    later = made.dispatcher.offer(11.0)
    assert made.asked(0.0) == ["g0p0"]
    assert made.step.sends[0].ticket is later
    assert made.ticket.waiting


@pytest.mark.parametrize("alone", [True, False])
def test_without_another_that_lives_the_same_one_is_asked_at_once(alone: bool) -> None:
    made = Failed()
    if alone:
        made.view.update(scenario(([1], [64])), {})
    else:
        made.good.sent(0.0)
        made.good.failed("lost", 0.0)
    assert made.asked(0.0) == ["g0p0"]
