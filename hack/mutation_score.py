"""The score of a mutation test: how many mutants tests kill, with its 95 % interval."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mutants import Mutant

ACCEPTED = Path(__file__).with_name("mutate.accepted")


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
        low, high = wilson(self.killed, self.judged)
        share = 100 * self.killed / self.judged if self.judged else 0.0
        return (
            f"{name:12} {self.judged:6} {self.killed:7} {self.accepted:9} "
            f"{share:6.1f} %  {100 * low:5.1f} .. {100 * high:5.1f} %"
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
    """Print the table; 1 where the lower end of the whole is below `floor`."""
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
    """What 2,000 mutants take, from the CPU time before the first of these and after the last."""
    each = (after - before) / max(1, judged)
    minutes = (before + 2000 * each / 2) / 60
    return f"{each:.2f} s on the CPU a mutant; 2,000 take {minutes:.0f} min on two idle cores"
