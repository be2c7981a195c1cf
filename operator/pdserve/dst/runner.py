"""Runs many schedules on all cores, and reduces those that fail.

Each process makes the settled scenes once and forks one per schedule. A failing schedule is
reduced: steps are left out, one after the other, as long as the same invariant still breaks.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import traceback
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import BinaryIO, NoReturn

from pdserve.dst.plants import Plant, planted
from pdserve.dst.scene import Scene, settled
from pdserve.dst.schedule import Move, Outcome, draw, run_forked, variant_of
from pdserve.dst.virtual_time import run_virtual

CUT_ROUNDS = 3
"""Times that all steps of a failing schedule are tried to be left out."""


def run_many(first: int, count: int, jobs: int) -> Iterator[Outcome]:
    """Outcomes of seeds `first` to `first + count - 1`, as they come, over `jobs` processes.

    Closing the iterator ends the processes.

    Raises:
        RuntimeError: a process ended with an error of its own, which it printed.
    """
    workers = [_Worker(range(first + n, first + count, jobs)) for n in range(min(jobs, count))]
    ready = selectors.DefaultSelector()
    for worker in workers:
        ready.register(worker.output, selectors.EVENT_READ)
    try:
        while ready.get_map():
            for key, _ in ready.select():
                # Outputs of processes were registered, where a selector takes any file.
                line = key.fileobj.readline()  # type: ignore[union-attr]
                if line:
                    yield Outcome(**json.loads(line))
                else:
                    ready.unregister(key.fileobj)
        endings = [worker.ended_well() for worker in workers]
        if not all(endings):
            raise RuntimeError("a process of the simulation failed; its error is above")
    finally:
        for worker in workers:
            worker.end()


def find(plant: Plant) -> Outcome | None:
    """The first seed that shows a planted fault, or None within the plant's budget."""
    with planted(plant):
        for outcome in run_many(plant.first, plant.seeds, 1):
            if outcome.number in plant.numbers:
                return outcome
    return None


def run_one(seed: int, *, writes: bool = False) -> Outcome:
    """Play the schedule of one seed; `writes` also records what the operator wrote.

    `seed`: any whole number.
    """
    found: list[Outcome] = []

    async def go(scene: Scene) -> None:
        found.append(await run_forked(scene, seed, draw(seed), writes=writes))

    _in_scene(variant_of(seed), go)
    return found[0]


def cut_down(seed: int) -> tuple[tuple[Move, ...], Outcome]:
    """The fewest steps found that still break the same invariant, and what they lead to."""
    kept: list[Move] = list(draw(seed))
    best: list[Outcome] = []

    async def go(scene: Scene) -> None:
        best.append(await run_forked(scene, seed, kept))
        wanted = best[0].number
        for _ in range(CUT_ROUNDS):
            before = len(kept)
            for move in list(kept):
                fewer = [m for m in kept if m is not move]
                outcome = await run_forked(scene, seed, fewer)
                if outcome.number == wanted:
                    kept[:] = fewer
                    best[0] = outcome
            if len(kept) == before:
                break

    _in_scene(variant_of(seed), go)
    return tuple(kept), best[0]


def _in_scene(variant: str, go: Callable[[Scene], Awaitable[object]]) -> None:
    async def main() -> None:
        async with settled(variant) as scene:
            await go(scene)

    with quiet_logs():
        run_virtual(main())


class quiet_logs:  # noqa: N801 - used as a context manager only
    """The operator's log lines of simulated clusters are of no use."""

    def __enter__(self) -> None:
        self._before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)

    def __exit__(self, *_: object) -> None:
        logging.disable(self._before)


class _Worker:
    """A process that runs some seeds and writes one JSON line for each."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._ended = False
        read, write = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            os.close(read)
            _work(seeds, write)
        os.close(write)
        self.output: BinaryIO = os.fdopen(read, "rb")

    def ended_well(self) -> bool:
        """Wait for it; whether it ran all of its seeds."""
        self._ended = True
        return os.waitpid(self.process, 0)[1] == 0

    def end(self) -> None:
        """Kill it, if it still runs."""
        if not self._ended:
            with suppress(ProcessLookupError):
                os.kill(self.process, signal.SIGTERM)
            os.waitpid(self.process, 0)
        self.output.close()


def _work(seeds: Iterable[int], write: int) -> NoReturn:
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        by_variant: dict[str, list[int]] = {}
        for seed in seeds:
            by_variant.setdefault(variant_of(seed), []).append(seed)
        for variant, listed in by_variant.items():
            _in_scene(variant, _all(listed, write))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _all(seeds: Sequence[int], write: int) -> Callable[[Scene], Awaitable[None]]:
    async def go(scene: Scene) -> None:
        for seed in seeds:
            outcome = await run_forked(scene, seed, draw(seed))
            data = json.dumps(asdict(outcome)).encode() + b"\n"
            while data:
                data = data[os.write(write, data) :]

    return go
