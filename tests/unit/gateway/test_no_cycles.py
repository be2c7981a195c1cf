"""What a request used is free when it ends, and not when the garbage collector looks next.

Lost instances are rare, and left out: an exception and the frames that it came through refer to
each other.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest
from tests.support.gateway_rig import Rig, eventually


@pytest.fixture
def _collected() -> Iterator[None]:
    """Unreachable objects are kept for the test to see."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


@pytest.mark.usefixtures("_collected")
@pytest.mark.parametrize("how", ["stream", "whole", "refused once", "client gone"])
async def test_nothing_of_a_request_is_left_to_the_collector(rig: Rig, how: str) -> None:
    await rig.one_group(prefills=2)
    gc.collect()
    gc.garbage.clear()
    for _ in range(3):
        if how == "refused once":
            rig.engines["p0"].script = rig.engines["p1"].script = ["full"]
        elif how == "client gone":
            rig.engines["d0"].token_seconds = 60.0
            task = asyncio.create_task(rig.complete(stream=True))
            await eventually(lambda: rig.engines["d0"].running == 1, "it streams")
            task.cancel()
            await eventually(lambda: rig.engines["d0"].running == 0, "it has ended")
            continue
        assert (await rig.complete(stream=how == "stream")).status == 200
    await eventually(lambda: not rig.gateway.server.connections, "all clients have gone")
    gc.collect()
    left = {type(found).__name__ for found in gc.garbage if _ours(found)}
    assert not left


def _ours(found: object) -> bool:
    return type(found).__module__.startswith("pdserve.")
