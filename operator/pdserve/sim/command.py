"""What `pdserve sim` does: runs an experiment and renders it; `cli.sim` reads the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pdserve.sim.experiments import (
    CLAIRVOYANT,
    ExperimentError,
    Line,
    known_shapes,
    policies_of,
    run_clairvoyant,
    run_fluid,
    run_policy,
    shapes_of,
)
from pdserve.sim.kernel.compiled import COMPILED
from pdserve.sim.policies.registry import POLICIES
from pdserve.sim.report_html import page
from pdserve.sim.report_png import PlotError, check_can_draw, draw
from pdserve.sim.shapes import DRAWN, FIRST_13, TrafficShape
from pdserve.sim.summary import (
    RunCell,
    length_table,
    policy_table,
    run_table,
    summarise,
)
from pdserve.sim.traces import TraceError


class SimulationError(Exception):
    """The command cannot be carried out; the message says why."""


@dataclass(frozen=True, slots=True)
class SimulationSpec:
    """One command line."""

    experiment: str
    seed: int
    policies: tuple[str, ...] = ()
    references: bool = True
    cold_start: float | None = None
    """Seconds, in place of the shapes' own."""
    azure: Path | None = None
    mooncake: Path | None = None
    html: Path | None = None
    png: Path | None = None
    as_json: bool = False


def listing() -> str:
    """Experiments and policies, for people."""
    rows = [f"{'table':16} the first {len(FIRST_13)} shapes: {', '.join(FIRST_13)}"]
    rows += [f"{name:16} {shape.note}" for name, shape in DRAWN.items()]
    rows += [
        f"{'azure_x5':16} Azure's conversations of 2023, five copies (--azure FILE)",
        f"{'mooncake_x2':16} Mooncake's conversations, two copies (--mooncake FILE)",
        "",
        f"policies: {', '.join(POLICIES)}",
        f"compiled by numba: {'yes' if COMPILED else 'no (slower, the same figures)'}",
    ]
    return "\n".join(rows)


def run(request: SimulationSpec, progress: Callable[[float | None, str], None]) -> str:
    """Run the experiment, write the files that were asked for, and return what to print.

    `progress` hears the share that is done, and of what.

    Raises:
        SimulationError: there is no such experiment, policy or trace, or a file cannot be written.
    """
    try:
        known = known_shapes(request.seed, request.azure, request.mooncake)
        shapes = shapes_of(request.experiment, known)
        policies = policies_of(request.policies)
        _check_files(request)
    except (ExperimentError, TraceError, OSError, PlotError) as error:
        raise SimulationError(str(error)) from error
    if request.cold_start is not None:
        shapes = [replace(shape, cold_start=request.cold_start) for shape in shapes]
    lines, fluid = _lines(request, shapes, policies, progress)
    text = _rendered(shapes, lines, fluid)
    try:
        if request.html is not None:
            request.html.write_text(page(request.experiment, text, lines), encoding="utf-8")
        if request.png is not None:
            draw(request.png, lines)
    except (OSError, PlotError) as error:
        raise SimulationError(str(error)) from error
    if request.as_json:
        body = {
            "experiment": request.experiment, "seed": request.seed, "fluid": fluid,
            "runs": [line.to_json() for line in lines],
        }  # fmt: skip
        return json.dumps(body, indent=1, allow_nan=False)
    return text


def _check_files(request: SimulationSpec) -> None:
    """Refuse before runs of minutes what can only fail behind them; OSError, PlotError."""
    for path in (request.html, request.png):
        if path is not None:
            with path.open("ab"):
                pass
    if request.png is not None:
        check_can_draw(request.png)


def _lines(
    request: SimulationSpec,
    shapes: Sequence[TrafficShape],
    policies: Sequence[str],
    progress: Callable[[float | None, str], None],
) -> tuple[list[Line], dict[str, float]]:
    """All runs, and each shape's fluid bound in device-hours."""
    total = len(shapes) * (len(policies) + request.references)
    lines: list[Line] = []
    fluid: dict[str, float] = {}
    for shape in shapes:
        for policy in policies:
            done, label = len(lines), f"{shape.name}, {policy}"

            def show(share: float, done: int = done, label: str = label) -> None:
                progress((done + share) / total, label)

            lines.append(run_policy(shape, policy, request.seed, show))
        if request.references:
            progress(len(lines) / total, f"{shape.name}, clairvoyant")
            lines.append(run_clairvoyant(shape, request.seed))
            fluid[shape.name] = run_fluid(shape, request.seed)
    return lines, fluid


def _rendered(
    shapes: Sequence[TrafficShape], lines: Sequence[Line], fluid: dict[str, float]
) -> str:
    targets = {shape.name: shape.slo.attainment for shape in shapes}
    cells = [RunCell(x.shape, x.policy, x.seed, x.result, targets[x.shape]) for x in lines]
    best = {(x.shape, x.seed): x.result.device_hours for x in lines if x.policy == CLAIRVOYANT}
    parts = [run_table(cells, best), length_table(cells)]
    if fluid:
        bounds = ", ".join(f"{name} {hours:.1f}" for name, hours in fluid.items())
        parts.append(f"fluid bound, device-hours: {bounds}")
    if len(shapes) > 1:
        parts.append(policy_table(summarise(cells, best)))
    return "\n\n".join(parts)
