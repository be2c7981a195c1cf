"""`make fuzz`: all parsers, many inputs, on all cores. Exit status 1 when one fails.

examples:
  python -m tests.fuzz                              50,000 inputs for each parser
  python -m tests.fuzz --only wire --seed 7         some parsers, other inputs
  python -m tests.fuzz --keep                       failing inputs go to tests/fuzz/kept, for CI
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tests.fuzz.check import Failure, check_all
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import targets

KEPT = Path(__file__).with_name("kept")
BATCH = 1000


def fuzz(name: str, seed: int, count: int) -> tuple[str, int, float, list[Failure]]:
    """One batch: parser, inputs, seconds, failures."""
    target = next(t for t in targets() if t.name == name)
    rng = random.Random(f"{name}/{seed}")
    started = time.monotonic()
    failures = check_all(target, [mutated(target.seeds, rng) for _ in range(count)])
    return name, count, time.monotonic() - started, failures


def main() -> int:
    """Run; prints a table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--inputs", type=int, default=50_000, help="for each parser")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="parsers whose name contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", action="store_true", help="store failing inputs")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    arguments = parser.parse_args()
    names = [t.name for t in targets() if arguments.only in t.name]
    if not names:
        parser.error(f"no parser's name contains {arguments.only!r}")
    batches = max(1, arguments.inputs // BATCH)
    count = min(arguments.inputs, BATCH)
    done: dict[str, list[float]] = {name: [0, 0.0] for name in names}
    found: dict[str, list[Failure]] = {name: [] for name in names}
    started = shown = time.monotonic()
    with ProcessPoolExecutor(arguments.jobs) as pool:
        # In rounds over all parsers: an early end has seen something of each.
        work = [
            pool.submit(fuzz, name, arguments.seed * 100_000 + batch, count)
            for batch in range(batches)
            for name in names
        ]
        for future in as_completed(work):
            name, inputs, seconds, failures = future.result()
            done[name][0] += inputs
            done[name][1] += seconds
            found[name] += failures
            if time.monotonic() - shown > 2 and sys.stderr.isatty():
                shown = time.monotonic()
                total = int(sum(d[0] for d in done.values()))
                wrong = sum(map(len, found.values()))
                print(f"\r{total:,} inputs, {wrong} failed ", end="", file=sys.stderr, flush=True)
    seconds = time.monotonic() - started
    if arguments.keep:
        for failure in _different(f for listed in found.values() for f in listed):
            _keep(failure)
    _report(arguments.output, done, found, seconds)
    return 1 if any(found.values()) else 0


def _different(failures: object) -> list[Failure]:
    """One of each parser and reason, the shortest."""
    shortest: dict[tuple[str, str], Failure] = {}
    for failure in failures:  # type: ignore[attr-defined]
        key = (failure.target, failure.why[:40])
        if key not in shortest or len(failure.data) < len(shortest[key].data):
            shortest[key] = failure
    return list(shortest.values())


def _keep(failure: Failure) -> None:
    folder = KEPT / failure.target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha256(failure.data).hexdigest()[:16]).write_bytes(failure.data)


def _report(
    output: str, done: dict[str, list[float]], found: dict[str, list[Failure]], seconds: float
) -> None:
    total = int(sum(d[0] for d in done.values()))
    if output == "json":
        body = {
            "inputs": total, "seconds": round(seconds, 1),
            "parsers": {name: int(d[0]) for name, d in done.items()},
            "failures": [
                {"parser": f.target, "why": f.why, "input": f.data[:400].decode("latin-1")}
                for listed in found.values() for f in listed
            ],
        }  # fmt: skip
        print(json.dumps(body, indent=1))
        return
    print(f"\n{'parser':24}{'inputs':>10}{'us each':>9}{'failed':>8}")
    for name, (inputs, spent) in done.items():
        each = spent / inputs * 1e6 if inputs else 0
        print(f"{name:24}{int(inputs):>10,}{each:>9.0f}{len(found[name]):>8}")
    print(f"{total:,} inputs in {seconds:.0f} s")
    for failure in _different(f for listed in found.values() for f in listed):
        print(f"{failure.target}: {failure.why}\n    {failure.data[:150]!r}")


if __name__ == "__main__":
    sys.exit(main())
