"""One form for every bench: a table for people, `build/bench/NAME.json` for scripts, floors that fail.

Each row compares what was measured with something else run in the same minute, because two
machines, or one machine an hour later, are not comparable: `ratio` is value / vs, and a row
fails when its ratio is on the wrong side of `floor`.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Row:
    """One measured figure.

    `better` says which side of `floor` is good for the ratio: "lower" (time, cost) or "higher"
    (throughput). `vs` names what `reference` is.
    """

    what: str
    value: float
    unit: str
    vs: str
    reference: float
    floor: float
    better: Literal["lower", "higher"]

    @property
    def ratio(self) -> float:
        """value / reference."""
        return self.value / self.reference if self.reference else float("inf")

    @property
    def ok(self) -> bool:
        """Whether the ratio is on the good side of the floor."""
        return self.ratio <= self.floor if self.better == "lower" else self.ratio >= self.floor


def versions() -> dict[str, str]:
    """What ran: interpreter, libraries, commit."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return {
        "pdserve": commit or "unknown",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("kopf", "kubernetes", "numpy")},
    }


def report(name: str, rows: list[Row]) -> int:
    """Print the table, write the JSON, return the exit status (1 when a floor fails)."""
    head = ("what", "value", "unit", "vs", "reference", "ratio", "floor", "")
    cells = [
        (
            r.what,
            f"{r.value:.3g}",
            r.unit,
            r.vs,
            f"{r.reference:.3g}",
            f"{r.ratio:.2f}",
            f"{'<=' if r.better == 'lower' else '>='} {r.floor:g}",
            "ok" if r.ok else "FAILED",
        )
        for r in rows
    ]
    widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
    for row in [head, *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    out = ROOT / "build" / "bench" / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        json.dumps(
            {
                "name": name,
                "versions": versions(),
                "rows": [
                    {
                        **{k: v for k, v in asdict(r).items() if k in ("what", "value", "unit")},
                        "vs": f"{r.vs}: {r.reference:.6g} {r.unit}",
                        "ratio": r.ratio,
                        "floor": r.floor,
                        "ok": r.ok,
                    }
                    for r in rows
                ],
            },
            indent=2,
        )
    )
    failed = [r.what for r in rows if not r.ok]
    if failed:
        print(f"\nbelow the floor: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0
