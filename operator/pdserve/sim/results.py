"""What came of a run, in figures: device-hours, attainment, the worst ten minutes, turns."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pdserve.sim.closed_loop import CountsChange, Run
from pdserve.sim.kernel import layout
from pdserve.sim.traffic import BLOCK
from pdserve.terms import Role

DEVICES = 8
"""Devices of one instance."""
WORST_MINUTES = 10


@dataclass(frozen=True, slots=True)
class BucketResult:
    """Requests of one range of prompt lengths."""

    below: float | None
    """Prompt tokens; None for the last."""
    offered: float
    infeasible: float
    met: float


@dataclass(frozen=True, slots=True)
class RunResult:
    """Figures of one run; shares are of requests that arrived in the run and ended in it."""

    device_hours: float
    offered: float
    infeasible: float
    """Share of offered requests that no instance could serve in time."""
    attainment: float
    """met / (offered - infeasible)."""
    worst: float
    """The same over the worst ten minutes."""
    ttft_met: float
    expired: float
    overload: float
    failed: float
    turns: int
    """How often the count of a role changed its direction."""
    changes: int
    peak: int
    """Most instances that were wanted at once."""
    buckets: tuple[BucketResult, ...]


def judge(run: Run) -> RunResult:
    """The figures of a run."""
    minutes = run.plant.minutes()
    totals = minutes.sum(axis=(0, 1))
    offered = float(totals[layout.B_OFFERED])
    feasible = max(offered - float(totals[layout.B_INFEASIBLE]), 1.0)
    share = {
        name: float(totals[column]) / max(offered, 1.0)
        for name, column in (
            ("infeasible", layout.B_INFEASIBLE), ("ttft_met", layout.B_TTFT_MET),
            ("expired", layout.B_EXPIRED), ("overload", layout.B_OVERLOAD),
            ("failed", layout.B_FAILED),
        )
    }  # fmt: skip
    return RunResult(
        device_hours=run.plant.instance_seconds * DEVICES / 3600,
        offered=offered,
        attainment=float(totals[layout.B_MET]) / feasible,
        worst=worst_window(minutes),
        turns=turns(run.changes, "prefill") + turns(run.changes, "decode"),
        changes=len(run.changes) - 1,
        peak=max(c.counts.total("prefill") + c.counts.total("decode") for c in run.changes),
        buckets=_buckets(minutes),
        **share,
    )


@dataclass(frozen=True, slots=True)
class Series:
    """What happened over time."""

    counts: tuple[tuple[float, int, int, str], ...]
    """Seconds, prefills and decodes that were wanted from then on, and why."""
    rate: tuple[float, ...]
    """Requests per second of each minute of arrival."""
    attainment: tuple[float | None, ...]
    """met / (offered - infeasible) of each minute; None where there was nothing to meet."""


def series_of(run: Run) -> Series:
    """Counts, rate and attainment over the run."""
    minutes = run.plant.minutes().sum(axis=1)
    offered, met = minutes[:, layout.B_OFFERED], minutes[:, layout.B_MET]
    feasible = offered - minutes[:, layout.B_INFEASIBLE]
    shares = [round(float(m / f), 4) if f > 0 else None for m, f in zip(met, feasible, strict=True)]
    changes = [
        (c.time, c.counts.total("prefill"), c.counts.total("decode"), c.reason) for c in run.changes
    ]
    rates = tuple(round(float(n) / BLOCK, 3) for n in offered)
    return Series(tuple(changes), rates, tuple(shares))


def worst_window(minutes: NDArray[np.float64]) -> float:
    """Attainment of the worst `WORST_MINUTES` in a row, at every minute's start."""
    by_minute = minutes.sum(axis=1)
    met = by_minute[:, layout.B_MET]
    feasible = by_minute[:, layout.B_OFFERED] - by_minute[:, layout.B_INFEASIBLE]
    window = np.ones(min(WORST_MINUTES, len(met)))
    mets = np.convolve(met, window, "valid")
    feasibles = np.convolve(feasible, window, "valid")
    shares = np.where(feasibles > 0, mets / np.maximum(feasibles, 1.0), 1.0)
    return float(shares.min())


def turns(changes: list[CountsChange], role: Role) -> int:
    """How often the instances of a role went from more to fewer or back."""
    totals = [change.counts.total(role) for change in changes]
    moves = [b - a for a, b in itertools.pairwise(totals) if b != a]
    return sum((a > 0) != (b > 0) for a, b in itertools.pairwise(moves))


def _buckets(minutes: NDArray[np.float64]) -> tuple[BucketResult, ...]:
    rows = minutes.sum(axis=0)
    found = []
    for index, row in enumerate(rows):
        last = index == layout.LENGTH_BUCKETS - 1
        below = None if last else float(layout.FIRST_LENGTH * 2**index)
        found.append(
            BucketResult(
                below,
                float(row[layout.B_OFFERED]),
                float(row[layout.B_INFEASIBLE]),
                float(row[layout.B_MET]),
            )
        )
    return tuple(found)
