"""Token bucket that keeps this process from flooding the API server. Used by `client`.

Waiters are served in the order they came. Time is the running event loop's, so a loop with
virtual time makes it deterministic.
"""

from __future__ import annotations

import asyncio


class TokenBucket:
    """`rate` requests per second on average, at most `burst` at once.

    Raises:
        ValueError: `rate` is not above 0, or `burst` is below 1.
    """

    def __init__(self, rate: float, burst: int) -> None:
        if rate <= 0 or burst < 1:
            raise ValueError(f"rate {rate} must be above 0 and burst {burst} at least 1")
        self.rate = rate
        self.burst = burst
        self._next_free: float | None = None

    async def take(self) -> float:
        """Wait for one token; returns the seconds waited.

        A waiter that is cancelled keeps its place paid for: under-use, never over-use.
        """
        now = asyncio.get_running_loop().time()
        spacing = 1.0 / self.rate
        # Virtual scheduling: the time at which an empty bucket would have paid for all takers.
        earliest = now - (self.burst - 1) * spacing
        start = earliest if self._next_free is None else max(earliest, self._next_free)
        self._next_free = start + spacing
        wait = max(0.0, start - now)
        if wait:
            await asyncio.sleep(wait)
        return wait
