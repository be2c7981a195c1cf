"""The real operator over a full cluster: what serves loses no devices to what waits."""

from __future__ import annotations

import pytest
from tests.support.contention_operator import Competition

from pdserve.dst.runner import quiet_logs
from pdserve.dst.virtual_time import run_virtual
from pdserve.dst.world_service import NPU

EPISODES = 8


@pytest.mark.invariant(13)
@pytest.mark.parametrize(
    ("seed", "scarce", "plenty"),
    [
        *((seed, NPU, "") for seed in range(4)),
        (10, "memory", ""),
        # Names of other devices come before that of the role's.
        (10, "example.com/nic", ""),
        (10, NPU, "example.com/nic"),
    ],
)
def test_no_serving_group_loses_devices_to_a_waiting_one(
    seed: int, scarce: str, plenty: str
) -> None:
    with quiet_logs():
        run_virtual(Competition(seed, scarce, plenty).run(EPISODES))
