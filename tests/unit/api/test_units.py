"""Values with a unit, and what they are in the terms that all packages share."""

from __future__ import annotations

import pytest

from pdserve.api.scenario import SloTargets
from pdserve.api.units import Duration


def test_targets_have_one_form_for_all_packages() -> None:
    targets = SloTargets(
        ttft=Duration("800ms"),
        handoff=Duration("0.2s"),
        tpot=Duration("1m30s"),
        attainment_percent=99.9,
    )
    got = targets.value
    assert (got.ttft, got.handoff, got.tpot) == (0.8, 0.2, 90.0)
    assert got.attainment == pytest.approx(0.999)
