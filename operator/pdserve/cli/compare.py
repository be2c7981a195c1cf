"""`pdserve compare`: every policy of the simulator on a scenario's own history."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdserve.cli.prometheus_history import PrometheusError, RangeQuestion, read_ranges
from pdserve.cli.record_file import RecordFileError, record_lines
from pdserve.ratio.presets import PRESETS, preset
from pdserve.terms import Slo

if TYPE_CHECKING:
    from pdserve.sim.recorded_history import History

_EXAMPLES = """examples:
  pdserve compare --record decisions.jsonl --html page.html
  pdserve compare --record decisions.jsonl --scenario shop/chat --policy pdserve --policy hpa
  pdserve compare --prometheus http://prometheus:9090 --scenario shop/chat --hours 24 \\
      --ttft 1000 --tpot 50 --preset llama2-70b-h100x8
"""


def add_parser(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "compare",
        help="every policy of the simulator on your own recorded history",
        description="Reads the rates and lengths that were measured, draws requests from them, and "
        "runs the ratio loop and the published laws of others on them in virtual time. The plant "
        "has the profile that was learned. Needs numpy: pip install 'pdserve[sim]'.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--record", type=Path, metavar="FILE",
                        help="what the operator's --decisions-log wrote")  # fmt: skip
    source.add_argument("--prometheus", metavar="URL", help="reads the gateways' counters")
    parser.add_argument("--scenario", metavar="SERVICE/NAME", help="needed with --prometheus")
    parser.add_argument("--hours", type=_hours, default=24.0, help="of Prometheus (default 24)")
    parser.add_argument("--ttft", type=_positive, default=1000.0, metavar="MS",
                        help="with --prometheus (default 1000); likewise the next two")  # fmt: skip
    parser.add_argument("--tpot", type=_positive, default=50.0, metavar="MS")
    parser.add_argument("--handoff", type=_positive, default=300.0, metavar="MS")
    parser.add_argument("--preset", metavar="NAME", choices=sorted(PRESETS),
                        help="the plant's profile, in place of what was learned")  # fmt: skip
    parser.add_argument("--policy", action="append", default=[], help="only this one; repeatable")
    parser.add_argument("--seed", type=_seed, default=1, help="of the requests (default 1)")
    parser.add_argument("--cold-start", type=_positive, metavar="SECONDS")
    parser.add_argument("--no-references", action="store_true", help="without the clairvoyant")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with pictures")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.set_defaults(run=_run)


def _hours(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 48.0:  # false for NaN
        raise argparse.ArgumentTypeError("must be 0.1 to 48")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0.0 < value <= 3.6e6:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value


def _run(arguments: argparse.Namespace) -> int:
    try:
        from pdserve.sim.compare import ComparisonSpec, compare
        from pdserve.sim.experiments import ExperimentError
        from pdserve.sim.recorded_history import HistoryError
    except ImportError as error:
        print(f"pdserve compare: {error}; pip install 'pdserve[sim]' brings it", file=sys.stderr)
        return 1
    spec = ComparisonSpec(
        name=arguments.scenario or str(arguments.record), policies=tuple(arguments.policy),
        seed=arguments.seed, clairvoyant=not arguments.no_references,
        cold_start=arguments.cold_start, html=arguments.html,
        as_json=arguments.output == "json",
    )  # fmt: skip
    try:
        history = _history(arguments)
        if arguments.preset is not None:
            slots = (4, 64)
            if history.profile is not None:
                slots = (history.profile.prefill_slots, history.profile.decode_slots)
            history.profile = preset(arguments.preset, *slots)
        print(compare(history, spec, _progress))
    except (HistoryError, ExperimentError, RecordFileError, PrometheusError) as error:
        print(f"pdserve compare: {error}", file=sys.stderr)
        return 2
    return 0


def _progress(share: float | None, label: str) -> None:
    """What runs now, on a terminal."""
    if share is not None and sys.stderr.isatty():
        print(f"\r{share:4.0%} {label:40}\r", end="", file=sys.stderr, flush=True)


def _history(arguments: argparse.Namespace) -> History:
    from pdserve.sim.recorded_history import HistoryError, history_of_rates, history_of_record

    if arguments.record is not None:
        lines = (line for _, line in record_lines(arguments.record))
        return history_of_record(lines, arguments.scenario)
    service, sign, scenario = (arguments.scenario or "").partition("/")
    if not (service and sign and scenario):
        raise HistoryError("--prometheus wants --scenario SERVICE/NAME")
    slo = Slo(arguments.ttft / 1e3, arguments.handoff / 1e3, arguments.tpot / 1e3, 0.99)
    ranges = read_ranges(arguments.prometheus, RangeQuestion(service, scenario, arguments.hours))
    profile = None if arguments.preset is None else preset(arguments.preset, 4, 64)
    return history_of_rates(ranges, slo, profile)
