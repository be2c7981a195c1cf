"""`pdserve dst`: hostile schedules against the real operator, in memory and in virtual time."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from typing import Any

from pdserve.dst import runner
from pdserve.dst.plants import PLANTS
from pdserve.dst.schedule import Outcome, describe

_EXAMPLES = """examples:
  pdserve dst --seeds 1000                    seeds 0 to 999 on all cores
  pdserve dst --seeds 500 --first-seed 7000   other ones
  pdserve dst --replay 7123                   one seed: its steps, and the fewest that still fail
  pdserve dst --seeds 200 -o json             for scripts
  pdserve dst --plants                        put known faults back: is each of them found?
"""


def add_parser(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "dst",
        help="run hostile schedules against the operator, simulated",
        description="Deterministic simulation test: the real operator under virtual time, while "
        "users, tenants, nodes, engines, Prometheus and the API server do what they may, odd "
        "values included. Exit status 1 when an invariant of docs/architecture.md was broken.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=_count, default=200, help="how many (default 200)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first one (default 0)")
    parser.add_argument("--jobs", type=_count, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one seed and explain it")
    parser.add_argument("--plants", action="store_true", help="look for faults put back on purpose")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at 10 violations")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.set_defaults(run=_run)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _run(arguments: argparse.Namespace) -> int:
    if arguments.replay is not None:
        return _replay(arguments.replay, arguments.output)
    if arguments.plants:
        return _plants(arguments.output)
    started, shown = time.monotonic(), 0.0
    failed: list[Outcome] = []
    done = 0
    for outcome in runner.run_many(arguments.first_seed, arguments.seeds, arguments.jobs):
        done += 1
        if outcome.violation:
            failed.append(outcome)
            if arguments.output == "text":
                print(f"\rseed {outcome.seed}: {outcome.violation}")
        now = time.monotonic()
        if now - shown > 1 and sys.stderr.isatty():
            shown = now
            rate = done / (now - started)
            print(f"\r{done}/{arguments.seeds} schedules, {rate:.0f}/s, {len(failed)} failed ",
                  end="", file=sys.stderr, flush=True)  # fmt: skip
        if len(failed) >= 10 and not arguments.keep_going:
            break
    _report(arguments, done, failed, time.monotonic() - started)
    return 1 if failed else 0


def _report(
    arguments: argparse.Namespace, done: int, failed: list[Outcome], seconds: float
) -> None:
    if arguments.output == "json":
        body = {
            "first_seed": arguments.first_seed, "schedules": done, "seconds": round(seconds, 1),
            "violations": [describe(o) for o in sorted(failed, key=lambda o: o.seed)],
        }  # fmt: skip
        print(json.dumps(body, indent=1))
        return
    last = arguments.first_seed + arguments.seeds - 1
    print(f"{done} schedules of seeds {arguments.first_seed} to {last} in {seconds:.0f} s "
          f"({done / seconds:.0f}/s): {len(failed)} broke an invariant")  # fmt: skip
    for number, count in sorted(Counter(o.number for o in failed).items()):
        print(f"  invariant {number}: {count}")
    if failed:
        print(f"explain one: pdserve dst --replay {failed[0].seed}")


def _plants(output: str) -> int:
    found = {}
    for plant in PLANTS:
        outcome = runner.find(plant)
        found[plant.name] = None if outcome is None else describe(outcome)
        if output == "text":
            shown = "NOT FOUND" if outcome is None else f"seed {outcome.seed}: {outcome.violation}"
            print(f"{plant.name:24} {plant.fault}\n    {shown}", flush=True)
    if output == "json":
        print(json.dumps(found, indent=1))
    return 1 if None in found.values() else 0


def _replay(seed: int, output: str) -> int:
    outcome = runner.run_one(seed)
    if not outcome.violation:
        if output == "json":
            print(json.dumps(describe(outcome), indent=1))
        else:
            print(*outcome.trace, "every invariant held", sep="\n")
        return 0
    moves, minimal = runner.cut_down(seed)
    if output == "json":
        print(json.dumps({**describe(outcome), "minimal": minimal.trace}, indent=1))
        return 1
    print(*outcome.trace, sep="\n")
    print(f"\nthe same with {len(moves)} of these steps:")
    print(*minimal.trace, sep="\n")
    return 1
