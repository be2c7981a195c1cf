"""`pdserve replay`: recorded decisions decided again, as they were and under other settings."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pdserve.cli.columns import table
from pdserve.cli.record_file import RecordFileError, record_lines
from pdserve.ratio.records import RecordError
from pdserve.ratio.types import Decision
from pdserve.ratio.what_if import FieldSetting, ReplayedDecision, field_setting, replay_line
from pdserve.terms.json import JsonObject
from pdserve.terms.times import rfc3339

_EXAMPLES = """examples:
  pdserve replay decisions.jsonl                           the same, byte for byte?
  pdserve replay decisions.jsonl --scenario chat --all     rounds that changed nothing, too
  pdserve replay decisions.jsonl --set slo.ttftMs=800      what if the target had been tighter?
  pdserve replay decisions.jsonl --set bounds.decode.max=4 --set settings.shrink_margin=0.2
exit status: 0 each decision came out as recorded, 1 some did not, 2 the record cannot be read
"""
_HEAD = ("TIME", "SCENARIO", "OUTCOME", "REASON", "FROM", "TO", "AGAIN")


def add_parser(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "replay",
        help="decide recorded ratio decisions again, also under other settings",
        description="Reads the file that the operator's --decisions-log writes and runs the ratio "
        "loop's own code on each recorded input. Each line is decided by itself, with the memory "
        "and counts it was recorded with.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("record", type=Path, metavar="FILE", help="JSON lines")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE",
                        help="a field of the recorded input; may be repeated")  # fmt: skip
    parser.add_argument("--service", help="only this PDService")
    parser.add_argument("--scenario", help="only this scenario")
    parser.add_argument("--all", action="store_true",
                        help="print rounds that held and came out alike, too")  # fmt: skip
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    try:
        settings = [field_setting(text) for text in arguments.set]
        found = _replayed(arguments, settings)
    except (RecordError, RecordFileError) as error:
        print(f"pdserve replay: {error}", file=sys.stderr)
        return 2
    different = sum(not r.equal for r in found)
    shown = found if arguments.all else [r for r in found if _telling(r)]
    if arguments.output == "json":
        body = {
            "rounds": len(found),
            "different": different,
            "decisions": [_json(r) for r in shown],
        }
        print(json.dumps(body, indent=1, allow_nan=False))
    else:
        print(_text(found, shown, different))
    return 1 if different else 0


def _replayed(
    arguments: argparse.Namespace, settings: Sequence[FieldSetting]
) -> list[ReplayedDecision]:
    found = []
    for number, line in record_lines(arguments.record):
        try:
            replayed = replay_line(line, settings)
        except RecordError as error:
            raise RecordFileError(f"{arguments.record}, line {number}: {error}") from error
        wanted = arguments.service in (None, replayed.service)
        if wanted and arguments.scenario in (None, replayed.scenario):
            found.append(replayed)
    return found


def _telling(replayed: ReplayedDecision) -> bool:
    """Whether a round changed something, came out differently, or would have."""
    if replayed.recorded.outcome != "Held" or not replayed.equal:
        return True
    return replayed.what_if is not None and _gist(replayed.what_if) != _gist(replayed.recorded)


def _gist(decision: Decision) -> tuple[object, ...]:
    return decision.outcome, decision.reason, decision.to


def _text(
    found: Sequence[ReplayedDecision], shown: Sequence[ReplayedDecision], different: int
) -> str:
    asked = any(r.what_if is not None for r in found)
    head = (*_HEAD, "WHAT IF") if asked else _HEAD
    parts = [table(head, [_row(r, asked) for r in shown])] if shown else []
    reasons = Counter(str(r.recorded.reason) for r in found)
    counted = ", ".join(f"{name} {count}" for name, count in reasons.most_common())
    parts.append(f"{len(found)} rounds, {different} not as recorded; {counted or 'none matches'}")
    if asked:
        changed = sum(
            r.what_if is not None and _gist(r.what_if) != _gist(r.recorded) for r in found
        )
        parts.append(f"{changed} rounds come out differently with these settings")
    return "\n\n".join(parts)


def _row(replayed: ReplayedDecision, asked: bool) -> tuple[str, ...]:
    d = replayed.recorded
    same = "equal" if replayed.equal else _short(replayed.again)
    row = (
        rfc3339(d.time), f"{replayed.service}/{replayed.scenario}", d.outcome, str(d.reason),
        str(d.before), str(d.to), same,
    )  # fmt: skip
    if not asked or replayed.what_if is None:
        return row
    alike = _gist(replayed.what_if) == _gist(d)
    return (*row, "the same" if alike else _short(replayed.what_if))


def _short(decision: Decision) -> str:
    return f"{decision.outcome} {decision.reason} {decision.to}"


def _json(replayed: ReplayedDecision) -> JsonObject:
    return {
        "service": replayed.service, "scenario": replayed.scenario, "equal": replayed.equal,
        "recorded": _decision_json(replayed.recorded), "again": _decision_json(replayed.again),
        "whatIf": None if replayed.what_if is None else _decision_json(replayed.what_if),
    }  # fmt: skip


def _decision_json(d: Decision) -> JsonObject:
    return {
        "time": rfc3339(d.time), "from": str(d.before), "to": str(d.to), "outcome": d.outcome,
        "reason": str(d.reason), "message": d.message, "inputs": dict(d.inputs),
        "candidates": [
            {"counts": str(c.counts), "devices": c.devices, "attainment": c.attainment,
             "note": c.note}
            for c in d.candidates
        ],
    }  # fmt: skip
