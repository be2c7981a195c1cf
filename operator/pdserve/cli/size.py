"""`pdserve size`: how many groups, prefills, decodes and devices an SLO and a traffic need."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pdserve.cli.measured_tables import TablesError, table_profile
from pdserve.ratio.demand import DEFAULT_SPREAD
from pdserve.ratio.presets import PRESETS, preset
from pdserve.ratio.profile import PerformanceProfile
from pdserve.ratio.types import Demand
from pdserve.sizing.profile_file import ProfileFileError, read_profile
from pdserve.sizing.roofline import (
    ACCELERATORS,
    COMPUTE_SHARE,
    MEMORY_SHARE,
    RooflineError,
    model_shape,
    roofline_profile,
)
from pdserve.sizing.size import SizeAnswer, SizeError, SizeQuestion, size
from pdserve.sizing.size_text import answer_json, answer_text
from pdserve.terms import Slo
from pdserve.terms.json import JsonObject
from pdserve.wire.bounds import WireError, parse_json

_EXAMPLES = """examples:
  pdserve size --ttft 1000 --tpot 50 --prompt 1200 --output 200 --rate 20
  pdserve size --ttft 1000 --tpot 50 --prompt 1200 --output 200 --rate 20 --devices 64
  pdserve size --ttft 2000 --tpot 50 --azure azure_llm_2023_conv.csv --copies 5
  pdserve size --ttft 2000 --tpot 30 --prompt 4000 --output 300 --rate 8 \\
      --model config.json --device h200 --instance-devices 8     an estimate by roofline
  pdserve size ... --profile measured.json -o json               times that you measured
  pdserve size ... --check                                       and simulate the answer
  pdserve size ... --tables meta-llama/Meta-Llama-3.1-70B --system h100_sxm
                                        beside it, the size by aiconfigurator-core's tables
exit status: 0 the size meets the SLO, 1 the devices are too few or no size does, 2 wrong usage
"""
BUSIEST = 300.0
"""Seconds of a trace whose load is sized for, where the trace is longer."""


class UsageError(ValueError):
    """The command line does not say what is needed; the message says what to add."""


def add_parser(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "size",
        help="groups, ratio and devices for an SLO and a traffic",
        description="Fewest devices that meet the SLO, what they attain, whether splitting prefill "
        "from decode pays, and what happens when the traffic is not as thought. The predictions "
        "are those of the ratio loop; docs/size.md has a worked example.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_targets(parser)
    _add_instances(parser)
    parser.add_argument("--check", action="store_true",
                        help="simulate the size, and one instance less of each role")  # fmt: skip
    parser.add_argument("-o", "--output-format", choices=("text", "json"), default="text",
                        dest="form")  # fmt: skip
    parser.set_defaults(run=_run)


def _add_targets(parser: argparse.ArgumentParser) -> None:
    target = parser.add_argument_group("targets")
    target.add_argument("--ttft", type=_within(1, 3.6e6), required=True, metavar="MS",
                        help="time to first token")  # fmt: skip
    target.add_argument("--tpot", type=_within(0.1, 6e5), required=True, metavar="MS",
                        help="time per output token")  # fmt: skip
    target.add_argument("--handoff", type=_within(1, 3.6e6), default=300.0, metavar="MS",
                        help="first token to second (default 300)")  # fmt: skip
    target.add_argument("--attainment", type=_within(0.5, 0.9999), default=0.99, metavar="SHARE",
                        help="of requests that meet all three (default 0.99)")  # fmt: skip
    traffic = parser.add_argument_group("traffic: figures, or one trace")
    traffic.add_argument("--prompt", type=_within(1, 1e7), metavar="TOKENS", help="mean")
    traffic.add_argument("--output", type=_within(1, 1e6), metavar="TOKENS", help="mean")
    traffic.add_argument("--rate", type=_within(1e-3, 1e6), metavar="PER_SECOND",
                         help="requests a second; with a trace: in place of its own")  # fmt: skip
    traffic.add_argument("--hit", type=_within(0, 0.99), default=0.0, metavar="SHARE",
                         help="of prompt tokens in prefix caches (default 0)")  # fmt: skip
    traffic.add_argument("--azure", type=Path, metavar="CSV", help="Azure's trace of 2023")
    traffic.add_argument("--mooncake", type=Path, metavar="JSONL", help="Mooncake's trace")
    traffic.add_argument("--copies", type=_count, default=1, help="of the trace (default 1)")


def _add_instances(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("instances: a preset, a file, or a model on a device")
    group.add_argument("--preset", default="llama2-70b-h100x8", metavar="NAME",
                       help=f"{', '.join(sorted(PRESETS))} (default the H100)")  # fmt: skip
    group.add_argument("--profile", type=Path, metavar="JSON",
                       help="coefficients, measured times, or a learned profile")  # fmt: skip
    group.add_argument("--model", type=Path, metavar="CONFIG_JSON",
                       help="a model's config.json: a roofline estimate on --device")  # fmt: skip
    group.add_argument("--device", metavar="NAME", help=", ".join(sorted(ACCELERATORS)))
    group.add_argument("--compute-share", type=_within(0.01, 1), default=COMPUTE_SHARE,
                       help=f"of peak arithmetic that is reached ({COMPUTE_SHARE})")  # fmt: skip
    group.add_argument("--memory-share", type=_within(0.01, 1), default=MEMORY_SHARE,
                       help=f"of peak bandwidth that is reached ({MEMORY_SHARE})")  # fmt: skip
    group.add_argument("--tables", metavar="MODEL",
                       help="also size by aiconfigurator-core's measured tables")  # fmt: skip
    group.add_argument("--system", default="h100_sxm", metavar="NAME",
                       help="of those tables (default h100_sxm)")  # fmt: skip
    group.add_argument("--backend", metavar="NAME",
                       help="of those tables, as aiconfigurator names it")  # fmt: skip
    group.add_argument("--instance-devices", type=_count, default=8, metavar="N",
                       help="devices of one instance (default 8)")  # fmt: skip
    group.add_argument("--prefill-slots", type=_count, default=4, metavar="N")
    group.add_argument("--decode-slots", type=_count, default=64, metavar="N")
    group.add_argument("--devices", type=_count, metavar="N", help="that are available")
    group.add_argument("--group-instances", type=_count, metavar="N",
                       help="most instances of one P/D group")  # fmt: skip


def _within(low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not low <= value <= high:  # false for NaN
            raise argparse.ArgumentTypeError(f"{text}: must be {low:g} to {high:g}")
        return value

    return number


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 100_000:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 to 100000")
    return value


def _run(arguments: argparse.Namespace) -> int:
    try:
        question = _question(arguments)
        answer = size(question)
        beside = _by_tables(arguments, question)
        check = _checked(answer) if arguments.check else None
    except (UsageError, ProfileFileError, RooflineError, TablesError) as error:
        print(f"pdserve size: {error}", file=sys.stderr)
        return 2
    except SizeError as error:
        print(f"pdserve size: {error}", file=sys.stderr)
        return 1
    _show(answer, beside, check, arguments.form)
    return 0 if answer.enough else 1


def _by_tables(arguments: argparse.Namespace, question: SizeQuestion) -> SizeAnswer | None:
    """The same question with aiconfigurator-core's times; None where they are not asked for."""
    if arguments.tables is None:
        return None
    if arguments.backend is None:
        raise UsageError("--tables: --backend names the engine whose times these are")
    profile = table_profile(
        arguments.tables, arguments.system, arguments.backend, arguments.instance_devices,
        arguments.prefill_slots, arguments.decode_slots,
    )  # fmt: skip
    return size(replace(question, profile=profile))


def _checked(answer: SizeAnswer) -> JsonObject:
    """What the simulator says of the size, for scripts."""
    try:
        from pdserve.sim.size_check import check_size
    except ImportError as error:
        raise UsageError(f"--check: {error}; pip install 'pdserve[sim]' brings it") from error
    question = answer.question
    try:
        found = check_size(
            question.profile, question.demand, question.slo, answer.split.counts,
            answer.batch_limit, seed=1,
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(f"--check: {error}") from error
    return {
        "attainment": round(found.counts, 4), "onePrefillLess": round(found.less_prefill, 4),
        "oneDecodeLess": round(found.less_decode, 4), "infeasible": round(found.infeasible, 4),
        "requests": found.requests, "seed": 1,
    }  # fmt: skip


def _show(
    answer: SizeAnswer, beside: SizeAnswer | None, check: JsonObject | None, form: str
) -> None:
    if form == "json":
        body = answer_json(answer)
        if beside is not None:
            body["byTables"] = answer_json(beside)
        if check is not None:
            body["simulated"] = check
        print(json.dumps(body, indent=1, allow_nan=False))
        return
    print(answer_text(answer))
    if check is not None:
        print(
            f"\nsimulated  {check['attainment']:.2%} of {check['requests']} requests; one prefill "
            f"less {check['onePrefillLess']:.2%}, one decode less {check['oneDecodeLess']:.2%}"
        )
    if beside is not None:
        print(f"\n--- the same by {beside.question.profile.source}\n{answer_text(beside)}")


def _question(arguments: argparse.Namespace) -> SizeQuestion:
    slo = Slo(arguments.ttft / 1e3, arguments.handoff / 1e3, arguments.tpot / 1e3,
              arguments.attainment)  # fmt: skip
    return SizeQuestion(
        slo=slo,
        demand=_demand(arguments),
        profile=_profile(arguments),
        prefill_devices=arguments.instance_devices,
        decode_devices=arguments.instance_devices,
        available=arguments.devices,
        group_instances=arguments.group_instances,
    )


def _profile(arguments: argparse.Namespace) -> PerformanceProfile:
    slots = arguments.prefill_slots, arguments.decode_slots
    if arguments.profile is not None:
        return read_profile(_text(arguments.profile), str(arguments.profile), *slots)
    if arguments.model is None and arguments.device is None:
        try:
            return preset(arguments.preset, *slots)
        except KeyError as error:
            raise UsageError(str(error.args[0])) from error
    if arguments.model is None or arguments.device is None:
        raise UsageError("a roofline estimate wants both --model CONFIG_JSON and --device NAME")
    try:
        config = parse_json(_text(arguments.model))
    except WireError as error:
        raise UsageError(f"{arguments.model}: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{arguments.model}: want the config.json of a model")
    return roofline_profile(
        model_shape(config), arguments.device, arguments.instance_devices, *slots,
        arguments.compute_share, arguments.memory_share,
    )  # fmt: skip


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error


def _demand(arguments: argparse.Namespace) -> Demand:
    if arguments.azure is not None or arguments.mooncake is not None:
        return _traced(arguments)
    missing = [n for n in ("prompt", "output", "rate") if getattr(arguments, n) is None]
    if missing:
        raise UsageError(f"--{missing[0]} is missing: the traffic is --prompt, --output and "
                         "--rate, or a trace (--azure, --mooncake)")  # fmt: skip
    uncached = arguments.prompt * (1.0 - arguments.hit)
    return Demand(arguments.rate, arguments.prompt, uncached, uncached**2 * DEFAULT_SPREAD,
                  arguments.output)  # fmt: skip


def _traced(arguments: argparse.Namespace) -> Demand:
    try:
        from pdserve.sim.trace_demand import busiest_demand
        from pdserve.sim.traces import TraceError, azure, mooncake
    except ImportError as error:
        raise UsageError(f"{error}; traces want pip install 'pdserve[sim]'") from error
    if arguments.azure is not None and arguments.mooncake is not None:
        raise UsageError("one trace: --azure or --mooncake")
    try:
        shape = (
            azure(arguments.azure, 0, arguments.copies)
            if arguments.azure is not None
            else mooncake(arguments.mooncake, 0, arguments.copies)
        )
    except TraceError as error:
        raise UsageError(str(error)) from error
    demand = busiest_demand(shape, BUSIEST)
    return demand if arguments.rate is None else replace(demand, rate=arguments.rate)
