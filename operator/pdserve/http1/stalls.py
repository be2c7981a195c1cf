"""Time limits under which a stall of this process is not counted against the other side.

A process that gets no CPU for a second finds its timer over and the answer in the socket, both at
once. asyncio runs the timer's cancellation first. Here a limit that is over lets the event loop
turn a few times more before it ends the wait, however long its turns take.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

LAST_LOOK: Final = 0.02
"""Seconds for what has arrived already."""
TURNS: Final = 10
"""Turns of the event loop for it: a connection that is there takes five to reach its caller."""


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Limit the time of a block, like `asyncio.timeout`, plus `TURNS` and then `LAST_LOOK`.

    Raises:
        TimeoutError: the block took longer, though the event loop was free to go on with it.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        end = _End(loop, limit, seconds)
        try:
            yield
        finally:
            end.cancel()


class _End:
    """Ends a wait when its seconds are over and the event loop has turned."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limit: asyncio.Timeout, seconds: float
    ) -> None:
        self._loop, self._limit, self._turns = loop, limit, TURNS
        self._next: asyncio.Handle = loop.call_later(seconds, self._turn)

    def cancel(self) -> None:
        """The block has ended."""
        self._next.cancel()

    def _turn(self) -> None:
        if self._turns:
            self._turns -= 1
            self._next = self._loop.call_soon(self._turn)
        else:
            self._limit.reschedule(self._loop.time() + LAST_LOOK)
