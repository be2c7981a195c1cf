"""A published figure beside ours over a range of assumptions."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NONE = "none within the ranges"


@dataclass(frozen=True, slots=True)
class Point:
    """Our figure under one set of assumptions, for each seed."""

    assumed: str
    figures: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.figures)

    @property
    def spread(self) -> float:
        """The largest less the smallest."""
        return max(self.figures) - min(self.figures)


@dataclass(frozen=True, slots=True)
class Claim:
    """One figure of the paper, and ours."""

    what: str
    paper: float
    unit: str
    points: tuple[Point, ...]
    """At least one."""
    near: float
    """How far a mean may be from the paper's figure and still yield it."""
    wanted: frozenset[str] | None = None
    """Assumptions under which the paper states its figure, where that leaves some out; None:
    any."""

    @property
    def low(self) -> Point:
        """The least mean."""
        return min(self.points, key=lambda p: p.mean)

    @property
    def high(self) -> Point:
        """The largest mean."""
        return max(self.points, key=lambda p: p.mean)

    @property
    def median(self) -> float:
        """Of the means."""
        return statistics.median(p.mean for p in self.points)

    @property
    def spread(self) -> float:
        """The largest difference between two seeds under the same assumptions."""
        return max(p.spread for p in self.points)

    def yielding(self) -> list[Point]:
        """The assumptions that yield the paper's figure, the nearest first."""
        allowed = (p for p in self.points if self.wanted is None or p.assumed in self.wanted)
        fit = [p for p in allowed if abs(p.mean - self.paper) <= self.near]
        return sorted(fit, key=lambda p: (abs(p.mean - self.paper), p.assumed))

    def to_json(self) -> dict[str, Any]:
        """The claim as scripts read it."""
        return {
            "what": self.what,
            "paper": self.paper,
            "unit": self.unit,
            "low": self.low.mean,
            "low_assumed": self.low.assumed,
            "median": self.median,
            "high": self.high.mean,
            "high_assumed": self.high.assumed,
            "n": len(self.points),
            "seeds": len(self.points[0].figures),
            "spread": self.spread,
            "yields": [p.assumed for p in self.yielding()],
            "points": [{"assumed": p.assumed, "figures": list(p.figures)} for p in self.points],
        }


def points(results: Mapping[str, Sequence[float]]) -> tuple[Point, ...]:
    """From our figures by assumption, one of each seed."""
    return tuple(Point(assumed, tuple(figures)) for assumed, figures in results.items())


def told(claims: Iterable[Claim]) -> str:
    """The claims for people."""
    lines = []
    for c in claims:
        fit = c.yielding()
        lines += [
            c.what,
            f"  paper {c.paper:+g} {c.unit}; ours {c.low.mean:+.3g} .. {c.high.mean:+.3g}, "
            f"median {c.median:+.3g}, n {len(c.points)}, spread over "
            f"{len(c.points[0].figures)} seeds at most {c.spread:.2g}",
            f"  least:   {c.low.assumed}",
            f"  largest: {c.high.assumed}",
            f"  yields the paper's: {len(fit)} of {len(c.points)}" if fit else
            f"  yields the paper's: {NONE}",
        ]  # fmt: skip
        lines += [f"    {p.mean:+.3g}: {p.assumed}" for p in fit[:4]]
    return "\n".join(lines)
