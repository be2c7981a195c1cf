"""`pdserve`: the command of someone trying pdserve out or developing it."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence

from pdserve import __version__
from pdserve.cli.demo import add_parser as add_demo
from pdserve.cli.dst import add_parser as add_dst
from pdserve.cli.local import add_parser as add_local

_EXAMPLES = """examples:
  pdserve demo                     start a local cluster, watch pdserve do its job, read the report
  pdserve demo --keep              the same, and leave the cluster up to look around in
  pdserve local up                 only a local cluster with process nodes
  pdserve local down               end it; nothing stays behind
  pdserve dst --seeds 200          hostile schedules against the operator, simulated
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (2: the command line was wrong)."""
    parser = argparse.ArgumentParser(
        prog="pdserve",
        description="LLM serving with prefill and decode apart, on Kubernetes.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_demo(commands)
    add_local(commands)
    add_dst(commands)
    version = commands.add_parser("version", help="print versions")
    version.set_defaults(run=_version)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def _version(_: argparse.Namespace) -> int:
    print(f"pdserve {__version__} (Python {platform.python_version()})")
    return 0
