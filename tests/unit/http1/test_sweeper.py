"""One timer for all waits: none is forgotten, and none is left when nothing waits."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from tests.support.gateway_rig import eventually

from pdserve.http1.sweeper import Sweeper


class Entry:
    """Notes when it was called, and asks to be called again so many times."""

    def __init__(self, sweeper: Sweeper, seconds: float, again: int = 0) -> None:
        self.due = time.perf_counter() + seconds
        self.calls: list[float] = []
        self._sweeper, self._again = sweeper, again
        sweeper.add(self)

    def overdue(self) -> None:
        now = time.perf_counter()
        assert now >= self.due
        self.calls.append(now)
        if len(self.calls) > self._again:
            self._sweeper.discard(self)
        else:
            self.due = now + 0.03


async def test_what_is_overdue_is_called_and_the_others_are_not() -> None:
    sweeper = Sweeper()
    late, often = Entry(sweeper, 0.05), Entry(sweeper, 0.0, again=3)
    never, gone = Entry(sweeper, 3600.0), Entry(sweeper, 0.05)
    sweeper.discard(gone)
    await eventually(lambda: len(often.calls) == 4 and bool(late.calls), "both were called")
    assert len(late.calls) == 1
    assert never.calls == gone.calls == []
    sweeper.discard(never)


async def test_an_entry_that_comes_after_a_pause_is_seen() -> None:
    sweeper = Sweeper()
    for _ in range(3):
        entry = Entry(sweeper, 0.01)
        await eventually(lambda e=entry: bool(e.calls), "it was called")  # type: ignore[misc]


class Raising(Entry):
    """Fails each time it is called."""

    def overdue(self) -> None:
        super().overdue()
        raise RuntimeError("a defect of one entry")


@pytest.mark.parametrize("first", [True, False])
async def test_an_entry_that_raises_holds_up_no_other(first: bool) -> None:
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    sweeper = Sweeper()
    made = [
        (Raising if raises else Entry)(sweeper, 0.0, again=2) for raises in [first, not first] * 4
    ]
    await eventually(lambda: all(len(entry.calls) == 3 for entry in made), "all were called")
    assert len(told) == 4 * 3, "and each defect is reported"


async def test_what_one_entry_takes_out_is_not_called_after_it() -> None:
    sweeper = Sweeper()
    called: list[Entry] = []

    class Rival(Entry):
        def overdue(self) -> None:
            called.append(self)
            for entry in pair:
                sweeper.discard(entry)

    pair = [Rival(sweeper, 0.0), Rival(sweeper, 0.0)]
    last = Entry(sweeper, 0.05)
    await eventually(lambda: bool(last.calls), "the look is over")
    assert len(called) == 1
