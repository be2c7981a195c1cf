"""Tables of many runs: one line for each run, and one for each policy over all shapes and seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pdserve.sim.results import RunResult

HEAD = ("shape", "policy", "seed", "device-h", "/ C", "attained", "worst 10 min", "infeasible",
        "turns", "changes", "peak")  # fmt: skip
POLICY_HEAD = ("policy", "device-h / C", "spread", "attained", "spread", "at target",
               "worst 10 min", "turns", "runs")  # fmt: skip


@dataclass(frozen=True, slots=True)
class RunCell:
    """One run in a table."""

    shape: str
    policy: str
    seed: int
    result: RunResult
    target: float
    """The shape's attainment target."""


@dataclass(frozen=True, slots=True)
class PolicySummary:
    """One policy over all its runs."""

    policy: str
    cost: float | None
    """Geometric mean of device-hours over the clairvoyant's; None without one."""
    cost_spread: float
    """Largest minus smallest of that mean by seed; likewise below."""
    attained: float
    """Mean of the runs' attainment."""
    attained_spread: float
    at_target: float
    """Shapes that met their target, the mean over seeds."""
    worst: float
    """Mean over the runs of the worst ten minutes."""
    turns: float
    """Mean number of direction changes of a run."""
    runs: int


def run_table(cells: Sequence[RunCell], clairvoyant: Mapping[tuple[str, int], float]) -> str:
    """A line for each run. `clairvoyant`: device-hours by shape and seed, where known."""
    rows = []
    for cell in cells:
        r, c = cell.result, clairvoyant.get((cell.shape, cell.seed))
        rows.append((
            cell.shape, cell.policy, str(cell.seed), f"{r.device_hours:.1f}",
            "-" if c is None else f"{r.device_hours / c:.2f}", f"{100 * r.attainment:.2f} %",
            f"{100 * r.worst:.1f} %", f"{100 * r.infeasible:.2f} %", str(r.turns), str(r.changes),
            str(r.peak),
        ))  # fmt: skip
    return aligned([HEAD, *rows])


def summarise(
    cells: Sequence[RunCell], clairvoyant: Mapping[tuple[str, int], float]
) -> list[PolicySummary]:
    """A summary for each policy, in the order in which they first appear."""
    names = list(dict.fromkeys(cell.policy for cell in cells))
    return [_summary(n, [c for c in cells if c.policy == n], clairvoyant) for n in names]


def policy_table(summaries: Sequence[PolicySummary]) -> str:
    """A line for each policy."""
    rows = [
        (
            s.policy, "-" if s.cost is None else f"{s.cost:.3f}", f"{s.cost_spread:.3f}",
            f"{100 * s.attained:.2f} %", f"{100 * s.attained_spread:.2f}", f"{s.at_target:.1f}",
            f"{100 * s.worst:.1f} %", f"{s.turns:.1f}", str(s.runs),
        )
        for s in summaries
    ]  # fmt: skip
    return aligned([POLICY_HEAD, *rows])


def length_table(cells: Sequence[RunCell]) -> str:
    """Attainment of each run by prompt length; `-` where nothing feasible was offered."""
    edges = [bucket.below for bucket in cells[0].result.buckets]
    names = [f"< {edge:.0f}" if edge is not None else "longer" for edge in edges]
    rows: list[Sequence[str]] = [("shape", "policy", "attained by prompt tokens:", *names)]
    for cell in cells:
        shares = []
        for bucket in cell.result.buckets:
            feasible = bucket.offered - bucket.infeasible
            shares.append(f"{100 * bucket.met / feasible:.2f} %" if feasible > 0 else "-")
        rows.append((cell.shape, cell.policy, "", *shares))
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns of equal width."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _summary(
    policy: str, cells: Sequence[RunCell], clairvoyant: Mapping[tuple[str, int], float]
) -> PolicySummary:
    seeds = sorted({cell.seed for cell in cells})
    by_seed = [[c for c in cells if c.seed == seed] for seed in seeds]
    costs = [cost for some in by_seed if (cost := _cost(some, clairvoyant)) is not None]
    attained = [_mean([c.result.attainment for c in some]) for some in by_seed]
    met = [sum(c.result.attainment >= c.target for c in some) for some in by_seed]
    return PolicySummary(
        policy,
        _cost(cells, clairvoyant),
        max(costs) - min(costs) if costs else 0.0,
        _mean([c.result.attainment for c in cells]),
        max(attained) - min(attained),
        _mean([float(n) for n in met]),
        _mean([c.result.worst for c in cells]),
        _mean([float(c.result.turns) for c in cells]),
        len(cells),
    )


def _cost(cells: Sequence[RunCell], clairvoyant: Mapping[tuple[str, int], float]) -> float | None:
    """Geometric mean of device-hours over the clairvoyant's."""
    logs = [
        math.log(cell.result.device_hours / c)
        for cell in cells
        if (c := clairvoyant.get((cell.shape, cell.seed)))
    ]
    return math.exp(_mean(logs)) if logs else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
