"""Leaving a dead server alone."""

from __future__ import annotations

from pdserve.telemetry.breaker import Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_opens_after_failures_in_a_row_and_waits_longer_each_time() -> None:
    clock = Clock()
    breaker = Breaker(clock, failures_to_open=3, first_pause=5.0, longest_pause=60.0)
    for _ in range(2):
        breaker.failed("refused")
        assert breaker.refusal() is None
    pauses = []
    for _ in range(6):
        breaker.failed("refused")
        refusal = breaker.refusal()
        assert refusal is not None
        assert "refused" in refusal
        pauses.append(breaker.open_until - clock.now)
        clock.now = breaker.open_until
        assert breaker.refusal() is None, "half open: one try"
    assert pauses == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]


def test_one_success_closes_and_forgets() -> None:
    breaker = Breaker(Clock(), failures_to_open=2)
    breaker.failed("a")
    breaker.succeeded()
    breaker.failed("b")
    assert breaker.refusal() is None
    breaker.failed("b")
    assert breaker.refusal() is not None
    breaker.succeeded()
    assert breaker.refusal() is None


def test_a_very_long_outage_overflows_nothing() -> None:
    breaker = Breaker(Clock(), failures_to_open=1)
    for _ in range(5000):
        breaker.failed("x")
    assert breaker.open_until - 100.0 == 60.0
