"""The compute thread: one job at a time, results back on the event loop.

A thread and not a process, because numpy gives up the GIL inside matrix products and KV then
needs no second copy. The switch interval is lowered so that the event loop gets the GIL within
a fraction of a millisecond between products.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

SWITCH_SECONDS = 0.0002

_T = TypeVar("_T")
_Job = Callable[[], None]


class Worker:
    """Runs jobs in order on its own thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)
        sys.setswitchinterval(SWITCH_SECONDS)
        self._thread.start()

    def submit(
        self,
        job: Callable[[], _T],
        done: Callable[[_T], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Run `job` on the thread, then `done(result)` or `failed(error)` on the event loop."""

        def call() -> None:
            try:
                result = job()
            except BaseException as error:  # Whatever it is, the loop must hear of it.
                self._loop.call_soon_threadsafe(failed, error)
            else:
                self._loop.call_soon_threadsafe(done, result)

        self._jobs.put(call)

    def stop(self) -> None:
        """End the thread after the job it runs now."""
        self._jobs.put(None)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
