"""Attainment as a PDService's status shows it."""

from __future__ import annotations

import dataclasses

from pdserve.controllers.ratio.ratio_loop import attainment_of
from pdserve.ratio.types import Unknown


def test_attainment_keeps_two_decimals_and_is_never_rounded_up() -> None:
    def percent(met: float, offered: float) -> float | None:
        from tests.support.ratio_values import sample, window

        return attainment_of(sample((window(met=met, offered=offered),))).percent

    assert percent(999.0, 1000.0) == 99.9
    assert percent(99_999.0, 100_000.0) == 99.99
    assert percent(100.0, 100.0) == 100.0


def test_attainment_is_unknown_rather_than_zero() -> None:
    assert attainment_of(Unknown("away")).percent is None
    from tests.support.ratio_values import sample, window

    assert attainment_of(sample((window(60.0, 2.0, 0.987),))).percent == 98.7
    assert attainment_of(sample((window(60.0, 0.0),))).percent is None
    half = dataclasses.replace(window(60.0, 2.0), met=Unknown("?"))
    assert attainment_of(sample((half,))).percent is None
