"""An asyncio event loop whose clock jumps to the next timer instead of waiting for it.

`@virtual_time` turns an async test into one that runs hours of timers in milliseconds and always
in the same order. Only for code that does no real I/O (the in-memory API model): a test that
waits for nothing at all is reported as a deadlock.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DeadlockError(RuntimeError):
    """Nothing is ready and no timer is set: the test would wait for ever."""


class _Jump(selectors.SelectSelector):
    """Tells the loop that its timeout has passed, without waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            ready = super().select(0)
            if not ready:
                raise DeadlockError("every task waits and no timer is set")
            return ready
        self.skipped += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Starts at second 1000, so that 0 is visibly wrong."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        """Virtual seconds; jumps to the next timer when nothing is ready."""
        return 1000.0 + self._jump.skipped


def run_virtual(main: Coroutine[object, object, T]) -> T:
    """`asyncio.run` on a `VirtualLoop`."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def virtual_time(test: Callable[P, Coroutine[object, object, T]]) -> Callable[P, T]:
    """Run an async test function in virtual time."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return run_virtual(test(*args, **kwargs))

    return run
