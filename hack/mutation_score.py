"""The score of a mutation test: how many mutants tests kill, with its 95 % interval.

`Progress` says how far a run is, on standard error.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mutants import Mutant

ACCEPTED = Path(__file__).with_name("mutate.accepted")
KILLED, SURVIVED, UNFIT = 1, 0, 3
"""What becomes of a mutant: exit codes of the process that judges it; others count as killed."""
SAY_EVERY_SECONDS = 30.0
"""Between two lines of progress."""


@dataclass
class Tally:
    """How it went."""

    killed: int = 0
    survived: list[Mutant] = field(default_factory=list)
    accepted: int = 0
    unfit: int = 0
    """Changes that could not be made; they do not count."""

    @property
    def judged(self) -> int:
        return self.killed + len(self.survived)

    def line(self, name: str) -> str:
        """One row of the table."""
        counts = f"{name:12} {self.judged:6} {self.killed:7} {self.accepted:9}"
        if not self.judged:
            return f"{counts}      -"
        low, high = wilson(self.killed, self.judged)
        share = 100 * self.killed / self.judged
        return f"{counts} {share:6.1f} %  {100 * low:5.1f} .. {100 * high:5.1f} %"


class Progress:
    """Says on standard error how far a run is, and at once which mutants survived.

    Args:
        total: how many mutants are to be judged.
        clock: seconds that never go back.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._clock = total, clock
        self.ends = math.inf
        """When no further mutant is begun, by `clock`."""
        self._judged = self._noticed = 0
        self._began = self._said = clock()

    def trace(self, tests: int) -> None:
        """That many tests are about to run unchanged, which takes minutes."""
        print(f"running {tests} tests unchanged", file=sys.stderr, flush=True)

    def begin(self) -> None:
        """The first mutant is about to be judged."""
        self._began = self._said = self._clock()
        print(f"they pass; judging {self._total} mutants", file=sys.stderr, flush=True)

    def judged(self, mutant: Mutant, code: int, ran: int) -> None:
        """One more is judged; `ran`: how many tests call its function."""
        if code == SURVIVED:
            tests = f"{ran} tests call it" if mutant.function else "all tests of its folder"
            print(f"survived ({tests}): line {mutant.line}\n{mutant.name}", flush=True)
        self._judged += 1
        self._noticed += code not in (SURVIVED, UNFIT)
        now = self._clock()
        if now - self._said >= SAY_EVERY_SECONDS:
            self._said = now
            print(self._line(now), file=sys.stderr, flush=True)

    def _line(self, now: float) -> str:
        rest = (self._total - self._judged) * (now - self._began) / self._judged
        left = max(0.0, min(rest, self.ends - now))
        return (
            f"{self._judged} of {self._total} judged, {self._noticed} noticed; "
            f"about {math.ceil(left / 60)} min left"
        )


def wilson(hits: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927), ends between 0 and 1; all of it without a sample."""
    if not total:
        return 0.0, 1.0
    share, square = hits / total, z * z
    middle = share + square / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + square / (4 * total * total))
    low, high = (middle - spread, middle + spread)
    whole = 1 + square / total
    return max(0.0, low / whole), min(1.0, high / whole)


def report(tally: dict[str, Tally], passed: int, floor: float, seconds: float) -> int:
    """Print the table; 1 where nothing was judged, or the lower end of the whole is below `floor`.

    `passed`: how many of those drawn are accepted; `seconds`: how long the run took.
    """
    if not any(one.judged for one in tally.values()):
        unfit = sum(one.unfit for one in tally.values())
        print(f"nothing was judged: {passed} accepted, {unfit} could not be made; {seconds:.0f} s")
        return 1
    whole = Tally(accepted=passed)
    print(f"{'':12} {'judged':>6} {'killed':>7} {'accepted':>9} {'score':>8}   95 %")
    for source, one in tally.items():
        print(one.line(Path(source).name))
        whole.killed += one.killed
        whole.survived += one.survived
        whole.unfit += one.unfit
    print(whole.line("all"))
    print(f"{whole.unfit} could not be made; {seconds:.0f} s")
    return int(wilson(whole.killed, whole.judged)[0] < floor)


def accepted(text: str) -> dict[str, str]:
    """Reason by name of the mutant: lines `name  # reason`.

    Raises:
        SystemExit: a line has no reason.
    """
    found = {}
    for line in text.splitlines():
        name, _, reason = line.partition("  # ")
        if name.strip() and not name.startswith("#"):
            if not reason.strip():
                raise SystemExit(f"{ACCEPTED.name}: no reason: {line}")
            found[name.strip()] = reason.strip()
    return found


def stale(by_path: dict[str, list[Mutant]], known: Iterable[str]) -> list[str]:
    """Accepted names of these modules, or of modules that are gone, that no mutant has any more."""
    there = {m.name for found in by_path.values() for m in found}
    return [name for name in known if name not in there]


def on_cpu() -> float:
    """Seconds that this process and all that it waited for were on a CPU."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def duration(before: float, after: float, judged: int) -> str:
    """What 2,000 mutants take, from the CPU time before the first of these and after the last.

    Seconds; `judged` is 1 or more.
    """
    each = (after - before) / judged
    minutes = (before + 2000 * each / 2) / 60
    return f"{each:.2f} s on the CPU a mutant; 2,000 take {minutes:.0f} min on two idle cores"
