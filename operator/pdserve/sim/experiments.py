"""Experiments: which shapes run under which policies, and one line for each run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from pdserve.sim.closed_loop import run
from pdserve.sim.policies.registry import POLICIES
from pdserve.sim.results import RunResult, judge
from pdserve.sim.shapes import DRAWN, FIRST_13, Shape
from pdserve.terms.json import JsonObject


class ExperimentError(Exception):
    """There is no such experiment, policy or shape; the message names those that exist."""


@dataclass(frozen=True, slots=True)
class Line:
    """One run's figures."""

    shape: str
    policy: str
    seed: int
    result: RunResult

    def to_json(self) -> JsonObject:
        """The line as scripts read it; the length of the last bucket is null."""
        figures = asdict(self.result)
        for bucket in figures["buckets"]:
            bucket["below"] = bucket["below"] if math.isfinite(bucket["below"]) else None
        return {"shape": self.shape, "policy": self.policy, "seed": self.seed, **figures}


def experiments(shapes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Names of experiments, and the shapes of each; `table` has the first thirteen."""
    found = {name: (name,) for name in shapes}
    return {"table": tuple(n for n in FIRST_13 if n in shapes), **found}


def run_line(shape: Shape, policy: str, seed: int, progress: Callable[[float], None]) -> Line:
    """Run one shape under one policy."""
    return Line(shape.name, policy, seed, judge(run(shape, POLICIES[policy], seed, progress)))


def chosen(experiment: str, policies: Sequence[str]) -> tuple[list[Shape], list[str]]:
    """Shapes and policies of an experiment; no policy named means all.

    Raises:
        ExperimentError: a name is not known.
    """
    known = experiments(list(DRAWN))
    if experiment not in known:
        raise ExperimentError(f"experiment {experiment!r}: want one of {', '.join(known)}")
    wrong = [name for name in policies if name not in POLICIES]
    if wrong:
        raise ExperimentError(f"policy {wrong[0]!r}: want one of {', '.join(POLICIES)}")
    return [DRAWN[name] for name in known[experiment]], list(policies or POLICIES)


HEAD = ("shape", "policy", "seed", "device-h", "attained", "worst 10 min", "infeasible", "turns",
        "changes", "peak")  # fmt: skip


def table(lines: Sequence[Line]) -> str:
    """The lines for people."""
    rows = [HEAD]
    for line in lines:
        r = line.result
        rows.append((
            line.shape, line.policy, str(line.seed), f"{r.device_hours:.1f}",
            f"{100 * r.attainment:.2f} %", f"{100 * r.worst:.1f} %", f"{100 * r.infeasible:.1f} %",
            str(r.turns), str(r.changes), str(r.peak),
        ))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
