"""What every parser must do with every input: answer, or refuse with an error it declares.

An input fails its parser when anything else is raised, when it takes more than `MAX_SECONDS` of
CPU time, or when it makes the process grow by more than `MAX_BYTES`.
"""

from __future__ import annotations

import resource
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass

from tests.fuzz.target import Target

MAX_SECONDS = 0.05
MAX_BYTES = 50 << 20
TRIES = 3
"""A slow input is measured again: the least of so many times counts."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One input that a parser does not survive as it should."""

    target: str
    data: bytes
    why: str


def check(target: Target, data: bytes) -> Failure | None:
    """Run one input."""
    seconds, wrong = _run(target, data)
    if wrong is None and seconds > MAX_SECONDS:
        seconds = min(_run(target, data)[0] for _ in range(TRIES))
        if seconds > MAX_SECONDS:
            wrong = f"{seconds * 1000:.0f} ms of CPU time"
    return None if wrong is None else Failure(target.name, data, wrong)


def check_all(target: Target, inputs: Sequence[bytes]) -> list[Failure]:
    """Run inputs; those of a batch are looked at one by one only if the process grew."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = [failure for data in inputs if (failure := check(target, data)) is not None]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    if grown > MAX_BYTES:
        found += [f for data in inputs if (f := check_memory(target, data)) is not None]
    return found


def check_memory(target: Target, data: bytes) -> Failure | None:
    """Run one input and look at the most memory that Python objects took meanwhile."""
    tracemalloc.start()
    try:
        _run(target, data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return Failure(target.name, data, f"{peak >> 20} MiB of memory") if peak > MAX_BYTES else None


def _run(target: Target, data: bytes) -> tuple[float, str | None]:
    wrong = None
    started = time.thread_time()
    try:
        target.parse(data)
    except target.errors:
        pass
    except BaseException as error:
        wrong = f"{type(error).__name__}: {str(error)[:200]}"
    return time.thread_time() - started, wrong
