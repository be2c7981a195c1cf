"""Time limits under which a stall of this process is not counted against the other side.

A process that gets no CPU for a second finds its timer over and the answer in the socket, both at
once. asyncio runs the timer's cancellation first. Here a limit that is over lets the event loop
look at its sockets once more before it ends the wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

LAST_LOOK: Final = 0.02
"""Seconds for what has arrived already: several turns of the event loop."""


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Limit the time of a block, like `asyncio.timeout`, plus `LAST_LOOK`.

    Raises:
        TimeoutError: the block took longer, though the event loop was free to go on with it.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        timer = loop.call_later(seconds, lambda: limit.reschedule(loop.time() + LAST_LOOK))
        try:
            yield
        finally:
            timer.cancel()
