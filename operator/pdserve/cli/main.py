"""`pdserve`: the command for trying pdserve out and for developing it.

Commands of other packages are plug-ins: an entry point of the group `pdserve.commands` names a
function that adds one. `local` and `demo` come so from `localcluster`, which images leave out.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pdserve import __version__
from pdserve.cli.compare import add_parser as add_compare
from pdserve.cli.dst import add_parser as add_dst
from pdserve.cli.engine import add_parser as add_engine
from pdserve.cli.model import add_parser as add_model
from pdserve.cli.replay import add_parser as add_replay
from pdserve.cli.sim import add_parser as add_sim
from pdserve.cli.size import add_parser as add_size

PLUGINS = "pdserve.commands"
"""Group of entry points: name of the command -> `add_parser(commands)`."""

_EXAMPLES = """examples:
  pdserve demo                     start a local cluster, watch pdserve do its job, read the report
  pdserve demo --keep              the same, and leave the cluster up to look around in
  pdserve local up                 only a local cluster with process nodes
  pdserve local down               end it; nothing stays behind
  pdserve dst --seeds 200          hostile schedules against the operator, simulated
  pdserve sim run step_x2          traffic under the ratio loop and the laws of others, simulated
  pdserve size --ttft 1000 --tpot 50 --prompt 1200 --output 200 --rate 20
  pdserve replay decisions.jsonl   decide recorded decisions again, or under other settings
  pdserve compare --record decisions.jsonl   every policy on your own history
  pdserve engine check URL URL     does an engine keep pdserve's contract?
  pdserve model get smollm2-135m   fetch a real model (93 MB)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (2: the command line was wrong)."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pdserve",
        description="LLM serving with prefill and decode apart, on Kubernetes.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for plugin in sorted(entry_points(group=PLUGINS), key=lambda plugin: plugin.name):
        _add_plugin(commands, plugin)
    add_dst(commands)
    add_sim(commands)
    add_size(commands)
    add_replay(commands)
    add_compare(commands)
    add_engine(commands)
    add_model(commands)
    version = commands.add_parser("version", help="print versions")
    version.set_defaults(run=_version)
    return parser


def _add_plugin(commands: Any, plugin: EntryPoint) -> None:
    """Add the command; where its package or a dependency is absent, one that says so."""
    try:
        add = plugin.load()
    except ImportError as error:
        reason = str(error)

        def run(_: argparse.Namespace) -> int:
            print(
                f"pdserve {plugin.name}: not installed here ({reason}); "
                "pip install 'pdserve[local]' brings it",
                file=sys.stderr,
            )
            return 1

        absent = commands.add_parser(
            plugin.name, help="not installed here", add_help=False, prefix_chars="\0"
        )  # no option is known, so each word is taken as it is
        absent.add_argument("words", nargs="*")
        absent.set_defaults(run=run)
    else:
        add(commands)


def _version(_: argparse.Namespace) -> int:
    print(f"pdserve {__version__} (Python {platform.python_version()})")
    return 0
