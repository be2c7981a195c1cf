"""`pdserve sim`: scenarios in virtual time under the real ratio loop and the laws of others."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

LONGEST_START = 3600.0
"""Seconds."""
_EXAMPLES = """examples:
  pdserve sim list                                    experiments and policies
  pdserve sim run step_x2 --seed 1                    one shape under every policy
  pdserve sim run table --policy pdserve              the thirteen shapes under our own loop
  pdserve sim run tide --policy pdserve --policy hpa --html /tmp/tide.html
  pdserve sim run step_x2 --cold-start 180            how slow may a start be?
  pdserve sim run azure_x5 --azure azure_llm_2023_conv.csv -o json
"""


def add_parser(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "sim",
        help="simulate traffic under the ratio loop and the laws of others",
        description="A scenario's gateways and instances in virtual time. Policies see scraped "
        "metrics alone, and each run is a function of its seed. Needs numpy; with numba it is five "
        "times as fast: pip install 'pdserve[sim]'.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="experiments and policies")
    listing.set_defaults(run=_list)
    run = actions.add_parser(
        "run",
        help="run an experiment",
        description="Prints a line for each run. `/ C` is over the device-hours of the feasible "
        "clairvoyant; attained is met / (offered - infeasible); the fluid bound is printed below.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("experiment", metavar="EXPERIMENT", help="see `pdserve sim list`")
    run.add_argument("--seed", type=_seed, default=1, help="of the requests (default 1)")
    run.add_argument("--policy", action="append", default=[], help="only this one; may be repeated")
    run.add_argument("--no-references", action="store_true",
                     help="leave out the clairvoyant, which takes up to a minute")  # fmt: skip
    run.add_argument("--cold-start", type=_seconds, metavar="SECONDS",
                     help="in place of the shapes' own: 60, or 300 in slow_cold")  # fmt: skip
    run.add_argument("--azure", type=Path, metavar="CSV", help="Azure's trace, for azure_x5")
    run.add_argument("--mooncake", type=Path, metavar="JSONL", help="Mooncake's, for mooncake_x2")
    run.add_argument("--html", type=Path, metavar="FILE", help="write a page with pictures")
    run.add_argument("--png", type=Path, metavar="FILE", help="write pictures (needs matplotlib)")
    run.add_argument("-o", "--output", choices=("text", "json"), default="text")
    run.set_defaults(run=_run)


def _seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= LONGEST_START:  # false for NaN
        raise argparse.ArgumentTypeError(f"must be 0 to {LONGEST_START:.0f}")
    return value


def _list(_: argparse.Namespace) -> int:
    try:
        from pdserve.sim.command import listing
    except ImportError as error:
        return _absent(error)
    print(listing())
    return 0


def _run(arguments: argparse.Namespace) -> int:
    try:
        from pdserve.sim.command import SimulationError, SimulationSpec, run
    except ImportError as error:
        return _absent(error)
    request = SimulationSpec(
        experiment=arguments.experiment,
        seed=arguments.seed,
        policies=tuple(arguments.policy),
        references=not arguments.no_references,
        cold_start=arguments.cold_start,
        azure=arguments.azure,
        mooncake=arguments.mooncake,
        html=arguments.html,
        png=arguments.png,
        as_json=arguments.output == "json",
    )
    try:
        text = run(request, _progress)
    except SimulationError as error:
        _progress(None, "")
        print(f"pdserve sim: {error}", file=sys.stderr)
        return 2
    _progress(None, "")
    print(text)
    return 0


def _absent(error: ImportError) -> int:
    print(f"pdserve sim: {error}; pip install 'pdserve[sim]' brings it", file=sys.stderr)
    return 1


def _progress(share: float | None, label: str) -> None:
    """A bar on a terminal; None clears it."""
    if not sys.stderr.isatty():
        return
    if share is None:
        print(f"\r{'':78}\r", end="", file=sys.stderr, flush=True)
        return
    full = round(30 * share)
    bar = "#" * full + "." * (30 - full)
    print(f"\r[{bar}] {share:4.0%} {label:38.38}", end="", file=sys.stderr, flush=True)
