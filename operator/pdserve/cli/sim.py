"""`pdserve sim`: scenarios in virtual time under the real ratio loop and the laws of others."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

_EXAMPLES = """examples:
  pdserve sim list                                  experiments and policies
  pdserve sim run step_x2 --seed 1                  one shape under every policy
  pdserve sim run table --policy pdserve            the thirteen shapes under our own loop
  pdserve sim run tide --seed 7 -o json             for scripts
"""


def add_parser(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "sim",
        help="simulate scenarios under the ratio loop and the laws of others",
        description="A scenario's gateways and instances in virtual time. Policies see scraped "
        "metrics alone; each run is a function of its seed.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="experiments and policies")
    listing.set_defaults(run=_list)
    run = actions.add_parser(
        "run",
        help="run an experiment",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("experiment", metavar="EXPERIMENT", help="see `pdserve sim list`")
    run.add_argument("--seed", type=int, default=1, help="of the requests (default 1)")
    run.add_argument("--policy", action="append", default=[], help="only this one; may be repeated")
    run.add_argument("-o", "--output", choices=("text", "json"), default="text")
    run.set_defaults(run=_run)


def _missing() -> str | None:
    """Why the simulator cannot run here; None when it can."""
    try:
        import numpy  # noqa: F401, PLC0415 - optional: the extra `sim`
    except ImportError as error:
        return f"pdserve sim: {error}; pip install 'pdserve[sim]' brings it"
    return None


def _list(_: argparse.Namespace) -> int:
    if (missing := _missing()) is not None:
        print(missing, file=sys.stderr)
        return 1
    from pdserve.sim.experiments import experiments  # noqa: PLC0415 - needs numpy
    from pdserve.sim.policies.registry import POLICIES  # noqa: PLC0415
    from pdserve.sim.shapes import DRAWN  # noqa: PLC0415

    for name, shapes in experiments(list(DRAWN)).items():
        note = DRAWN[name].note if name in DRAWN else f"{len(shapes)} shapes: {', '.join(shapes)}"
        print(f"{name:16} {note}")
    print(f"\npolicies: {', '.join(POLICIES)}")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    if (missing := _missing()) is not None:
        print(missing, file=sys.stderr)
        return 1
    from pdserve.sim.experiments import (  # noqa: PLC0415 - needs numpy
        ExperimentError,
        chosen,
        run_line,
        table,
    )

    try:
        shapes, policies = chosen(arguments.experiment, arguments.policy)
    except ExperimentError as error:
        print(f"pdserve sim: {error}", file=sys.stderr)
        return 2
    total, lines = len(shapes) * len(policies), []
    for shape in shapes:
        for policy in policies:
            at = len(lines)
            label = f"{shape.name}, {policy}"
            lines.append(
                run_line(
                    shape,
                    policy,
                    arguments.seed,
                    lambda share, at=at, label=label: _progress((at + share) / total, label),
                )
            )
    _progress(None, "")
    if arguments.output == "json":
        print(json.dumps([line.to_json() for line in lines], indent=1))
    else:
        print(table(lines))
    return 0


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
