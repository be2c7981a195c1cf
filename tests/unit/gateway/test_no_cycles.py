"""What a request used is free when it ends, and not when the garbage collector looks next.

Bodies are of megabytes, and the collector of a gateway looks rarely. What refers to itself is most
often an exception that is kept: it refers to the frames that it came through.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest
from tests.support.gateway_rig import Rig, eventually

from pdserve.wire.calls import PATH_COMPLETIONS


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
@pytest.mark.parametrize(
    "how", ["stream", "whole", "refused once", "lost once", "status once", "client gone"]
)
async def test_nothing_of_a_request_is_left_to_the_collector(rig: Rig, how: str) -> None:
    await rig.one_group(prefills=2)
    gc.collect()
    gc.garbage.clear()
    for _ in range(3):
        if how == "refused once":
            rig.engines["p0"].script = rig.engines["p1"].script = ["full"]
        elif how == "lost once":
            rig.engines["p0"].script = rig.engines["p1"].script = ["reset"]
        elif how == "status once":
            rig.engines["p0"].script = rig.engines["p1"].script = ["500"]
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


@pytest.mark.usefixtures("_collected")
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"x" * 40_000, 400),
        (b'{"model": "nothing", "prompt": "x"}', 404),
        (b'{"model": "tiny", "prompt": "x", "max_tokens": "many"}', 400),
        (b"[" * 300, 400),
    ],
    ids=["no context holds it", "unknown model", "wrong field", "too deep"],
)
async def test_nothing_of_a_refused_request_is_left_to_the_collector(
    rig: Rig, body: bytes, status: int
) -> None:
    """Its body may be of megabytes: a hundred of them would wait for the collector together."""
    await rig.one_group()
    rig.gateway.service.largest_body = 30_000
    gc.collect()
    gc.garbage.clear()
    for _ in range(3):
        assert (await rig.request("POST", PATH_COMPLETIONS, body)).status == status
    await eventually(lambda: not rig.gateway.server.connections, "all clients have gone")
    gc.collect()
    left = {type(found).__name__ for found in gc.garbage if _ours(found) or found == body}
    assert not left


def _ours(found: object) -> bool:
    return type(found).__module__.startswith("pdserve.")
