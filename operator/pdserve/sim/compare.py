"""All policies on a scenario's own history: one table, one page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pdserve.sim.experiments import CLAIRVOYANT, Line, policies_of, run_clairvoyant, run_policy
from pdserve.sim.recorded_history import History, HistoryError, history_shape
from pdserve.sim.report_html import page
from pdserve.sim.results import DEVICES

HEAD = ("policy", "instance-h", "/ C", "attained", "worst 10 min", "turns", "changes", "peak")


@dataclass(frozen=True, slots=True)
class ComparisonSpec:
    """What is to be compared on one history."""

    name: str
    policies: tuple[str, ...] = ()
    """By name; none: all."""
    seed: int = 1
    clairvoyant: bool = True
    cold_start: float | None = None
    """Seconds, in place of the history's."""
    html: Path | None = None
    as_json: bool = False


def compare(
    history: History, spec: ComparisonSpec, progress: Callable[[float | None, str], None]
) -> str:
    """Run the policies, write the page that was asked for, and return what to print.

    Raises:
        HistoryError: the history is too short, or no profile is known, or the page cannot be
            written.
        ExperimentError: there is no such policy.
    """
    profile = history.profile
    if profile is None:
        raise HistoryError("nothing was learned of the instances yet: name a profile (--preset)")
    policies = policies_of(spec.policies)
    shape = history_shape(history, spec.name)
    if spec.cold_start is not None:
        shape = replace(shape, cold_start=spec.cold_start)
    lines: list[Line] = []
    for index, policy in enumerate(policies):
        progress(index / len(policies), policy)
        lines.append(run_policy(shape, policy, spec.seed, profile=profile))
    if spec.clairvoyant:
        progress(1.0, CLAIRVOYANT)
        lines.append(run_clairvoyant(shape, spec.seed, profile))
    text = _text(history, lines, shape.note, spec)
    if spec.html is not None:
        try:
            spec.html.write_text(page(f"Policies on {spec.name}", text, lines), encoding="utf-8")
        except OSError as error:
            raise HistoryError(str(error)) from error
    return _json(history, lines, spec) if spec.as_json else text


def _text(history: History, lines: Sequence[Line], note: str, spec: ComparisonSpec) -> str:
    target = history.slo.attainment
    best = _clairvoyant_hours(lines)
    ordered = sorted(
        lines, key=lambda x: (x.result.attainment < target, x.result.device_hours, x.policy)
    )
    rows = [_recorded_row(history, best)] if history.seconds else []
    rows += [_row(line, best) for line in ordered]
    source = history.profile.source if history.profile else "none"
    widths = [max(len(row[i]) for row in (HEAD, *rows)) for i in range(len(HEAD))]
    table = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w)
                  for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in (HEAD, *rows)
    ]  # fmt: skip
    head = (
        f"{spec.name}: {note}, seed {spec.seed}, target {target:.1%}; plant: {source}\n"
        "Those that meet the target first, then by instance-hours. Requests are drawn from the "
        "recorded rates and mean lengths."
    )
    return "\n".join([head, "", *table])


def _clairvoyant_hours(lines: Sequence[Line]) -> float | None:
    return next((_hours(x) for x in lines if x.policy == CLAIRVOYANT), None)


def _hours(line: Line) -> float:
    return line.result.device_hours / DEVICES


def _row(line: Line, best: float | None) -> tuple[str, ...]:
    r = line.result
    return (
        line.policy, f"{_hours(line):.2f}", f"{_hours(line) / best:.2f}" if best else "-",
        f"{r.attainment:.2%}", f"{r.worst:.1%}", str(r.turns), str(r.changes), str(r.peak),
    )  # fmt: skip


def _recorded_row(history: History, best: float | None) -> tuple[str, ...]:
    """What was wanted and measured in the real cluster."""
    hours, attained = history.instance_hours(), history.attainment()
    peak = max(g * (p + d) for g, p, d in history.seconds)
    return (
        "(recorded)", f"{hours:.2f}", f"{hours / best:.2f}" if best else "-",
        "-" if attained is None else f"{attained:.2%}", "-", "-", "-", str(peak),
    )  # fmt: skip


def _json(history: History, lines: Sequence[Line], spec: ComparisonSpec) -> str:
    body = {
        "history": spec.name, "seed": spec.seed, "target": history.slo.attainment,
        "recorded": {
            "instanceHours": round(history.instance_hours(), 4), "attainment": history.attainment(),
        },
        "runs": [{**line.to_json(), "instanceHours": round(_hours(line), 4)} for line in lines],
    }  # fmt: skip
    return json.dumps(body, indent=1, allow_nan=False)
