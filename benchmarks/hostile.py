"""What attackers, odd clients and dying processes cost all others: as little as promised.

Run by `make bench-hostile`, under ten minutes on two idle cores; progress on standard error. Real
gateway processes over stub engines, where only the gateway is measured, and over real engine
processes. Each row is compared with the same service without the attack, with what was sent, or
with the limit that is promised (docs/promises.md). Engines log to build/bench/hostile-engines.log.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import OUT, Progress, Row, report
from benchmarks.parts import hostile_attacks, hostile_losses, hostile_rates

Part = Callable[[float, Progress], Awaitable[list[Row]]]
PARTS: dict[str, Part] = {
    "bodies": hostile_attacks.bodies,
    "aborts": hostile_attacks.aborts,
    "poison": hostile_losses.poison,
    "large": hostile_attacks.large,
    "memory": hostile_attacks.memory,
    "decode": hostile_losses.decode,
    "whole": hostile_rates.whole,
    "idle": hostile_rates.idle,
    "gateways": hostile_losses.gateways,
}
QUICK = 0.05
"""Share of the requests that `--quick` sends."""


async def everything(parts: list[str], share: float) -> tuple[list[Row], list[str]]:
    """The rows of these parts, one part after another; and why a part could not go on."""
    progress, rows, stopped = Progress(), [], []
    for part in parts:
        progress(f"--- {part}")
        try:
            rows += await PARTS[part](share, progress)
        except (AssertionError, OSError) as error:
            stopped.append(f"{part}: {error}")
            progress(stopped[-1])
    return rows, stopped


def main() -> int:
    """0: every floor held; 1: one failed, or a part could not go on; 130: interrupted."""
    parser = argparse.ArgumentParser(prog="make bench-hostile", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=list(PARTS), metavar="ROW",
        help=f"one of {', '.join(PARTS)}; may be given several times",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a twentieth of the requests")
    chosen = parser.parse_args()
    # A terminated bench ends its processes like an interrupted one.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    (OUT / "hostile-engines.log").unlink(missing_ok=True)
    parts, share = chosen.only or list(PARTS), QUICK if chosen.quick else 1.0
    try:
        rows, stopped = asyncio.run(everything(parts, share))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    status = report("hostile", rows)
    for reason in stopped:
        print(f"stopped: {reason}", file=sys.stderr)
    return 1 if stopped else status


if __name__ == "__main__":
    sys.exit(main())
