"""The real operator over a full cluster: what serves loses no devices to what waits."""

from __future__ import annotations

import pytest
from tests.support.contention_operator import Competition

from pdserve.dst.runner import quiet_logs
from pdserve.dst.virtual_time import run_virtual

EPISODES = 8


@pytest.mark.invariant(13)
@pytest.mark.parametrize("seed", range(4))
def test_no_serving_group_loses_devices_to_a_waiting_one(seed: int) -> None:
    with quiet_logs():
        run_virtual(Competition(seed).run(EPISODES))
