"""One form for every bench: a table, `build/bench/NAME.json` for scripts, floors that fail.

Each row compares what was measured with something else run in the same minute, because two
machines, or one machine an hour later, are not comparable: `ratio` is value / vs, and a row
fails when its ratio is on the wrong side of `floor`.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "bench"
RANGES = ROOT / "benchmarks" / "ranges.json"
"""By bench and row: the least and the most that its figure may be."""


@dataclass(frozen=True)
class Row:
    """One measured figure.

    `better` says which side of `floor` is good for the ratio: "lower" (time, cost) or "higher"
    (throughput). `vs` names what `reference` is. `n` counts the repetitions behind `value`, and
    `spread` is the largest minus the smallest of them, in `unit`.

    Raises:
        ValueError: value or reference is no number, or the reference is not above 0.
    """

    what: str
    value: float
    unit: str
    vs: str
    reference: float
    floor: float
    better: Literal["lower", "higher"]
    n: int = 1
    spread: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"{self.what}: value {self.value} is not a number")
        if not (math.isfinite(self.reference) and self.reference > 0):
            raise ValueError(f"{self.what}: reference {self.reference} ({self.vs}) is not above 0")

    @property
    def ratio(self) -> float:
        """value / reference."""
        return self.value / self.reference

    @property
    def ok(self) -> bool:
        """Whether the ratio is on the good side of the floor."""
        return self.ratio <= self.floor if self.better == "lower" else self.ratio >= self.floor

    def to_json(self) -> dict[str, Any]:
        """The row as scripts read it."""
        return {
            "what": self.what,
            "value": self.value,
            "unit": self.unit,
            "vs": f"{self.vs}: {self.reference:.6g} {self.unit}",
            "ratio": self.ratio,
            "floor": self.floor,
            "ok": self.ok,
            "n": self.n,
            "spread": self.spread,
        }


def versions() -> dict[str, str]:
    """What ran: interpreter, libraries, commit."""
    commit = ""
    if shutil.which("git"):
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
    return {
        "pdserve": commit or "unknown",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("kopf", "kubernetes", "numpy")},
    }


class Progress:
    """Lines on standard error with the time since the start, so that a long run shows progress."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, line: str) -> None:
        """Say one line."""
        print(f"[{time.monotonic() - self._began:6.1f} s] {line}", file=sys.stderr, flush=True)


def concluded(name: str, work: Coroutine[Any, Any, list[Row]]) -> int:
    """Run a bench and report it; the exit status.

    0: every floor held; 1: one failed, or the bench could not go on; 130: interrupted.
    """
    try:
        rows = asyncio.run(work)
    except AssertionError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return report(name, rows)


def out_of_range(name: str, rows: Sequence[Row], ranges: Path = RANGES) -> list[str]:
    """What lies outside the range that `ranges` states for this bench, or was not measured.

    A figure far below what was ever reached says that the bench measures something else by now.
    """
    stated: dict[str, list[float]] = json.loads(ranges.read_text()).get(name, {})
    values = {row.what: row.value for row in rows}
    found = [f"{what} was not measured" for what in sorted(stated.keys() - values.keys())]
    for what, (low, high) in stated.items():
        if what in values and not low <= values[what] <= high:
            found.append(f"{what}: {values[what]:.3g} is not within {low:g} and {high:g}")
    return found


def report(
    name: str,
    rows: list[Row],
    out: Path = OUT,
    *,
    ranges: bool = False,
    more: Mapping[str, Any] | None = None,
) -> int:
    """Print the table, write the JSON, return the exit status (1 when a floor fails).

    The JSON has the machine's load averages at the end, so that a busy neighbour can be seen.

    Args:
        name: of the bench.
        rows: what was measured.
        out: where the JSON goes.
        ranges: whether `RANGES` holds too, for a bench at its full size.
        more: what the JSON says beside the rows, by key.
    """
    print(table(rows))
    out.mkdir(parents=True, exist_ok=True)
    document = {
        "name": name,
        "versions": versions(),
        "load": list(os.getloadavg()),
        "rows": [r.to_json() for r in rows],
        **(more or {}),
    }
    (out / f"{name}.json").write_text(json.dumps(document, indent=2, allow_nan=False))
    failed = [r.what for r in rows if not r.ok]
    if failed:
        print(f"\nbelow the floor: {', '.join(failed)}", file=sys.stderr)
    outside = out_of_range(name, rows) if ranges else []
    for line in outside:
        print(f"out of range: {line}", file=sys.stderr)
    return 1 if failed or outside else 0


def table(rows: list[Row]) -> str:
    """The rows for people."""
    head = ("what", "value", "unit", "vs", "reference", "ratio", "floor", "n", "spread", "")
    cells = [
        (
            r.what,
            f"{r.value:.3g}",
            r.unit,
            r.vs,
            f"{r.reference:.3g}",
            f"{r.ratio:.2f}",
            f"{'<=' if r.better == 'lower' else '>='} {r.floor:g}",
            str(r.n),
            f"{r.spread:.2g}" if r.n > 1 else "-",
            "ok" if r.ok else "FAILED",
        )
        for r in rows
    ]
    widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *cells]
    )
