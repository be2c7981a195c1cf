"""The cold start as measured, and how many requests gateways put on a decode."""

from __future__ import annotations

import pytest
from tests.support.ratio_values import PROFILE, SLO

from pdserve.ratio.learn import Start, observe_starts, start
from pdserve.ratio.model import ADMISSION_MARGIN, admission_batch
from pdserve.ratio.records import from_json, to_json
from pdserve.terms import Slo

EMPTY = start("k", 4, 32)


def test_the_cold_start_is_the_median_of_the_last_starts() -> None:
    assert EMPTY.cold_start() is None
    state = observe_starts(EMPTY, [Start(200.0, 90.0), Start(100.0, 300.0), Start(300.0, 80.0)])
    assert state.cold_start() == 90.0
    assert observe_starts(state, [Start(300.0, 7.0), Start(50.0, 7.0)]) == state, "known"
    for k in range(20):
        state = observe_starts(state, [Start(400.0 + k, 40.0)])
    assert state.cold_start() == 40.0
    assert len(state.starts) == 8
    assert from_json(type(state), to_json(state)) == state


@pytest.mark.parametrize(("tpot", "slots"), [(0.045, 32), (0.036, 11), (0.02, 1)])
def test_gateways_stay_below_the_batch_at_which_streams_miss_tpot(tpot: float, slots: int) -> None:
    slo = Slo(SLO.ttft, SLO.handoff, tpot, SLO.attainment)
    most = admission_batch(PROFILE, 1300.0, slo)
    assert most <= 32
    assert abs(most - slots) <= 12
    if 1 < most < 32:
        assert PROFILE.decode.step_seconds(most, 1300.0) <= ADMISSION_MARGIN * tpot
        assert PROFILE.decode.step_seconds(most + 1, 1300.0) > ADMISSION_MARGIN * tpot
