"""Experiments: shapes under policies, with the references beside them.

`references` are no policies: `clairvoyant` knows every request beforehand, `fluid` is a bound that
no policy reaches; `reaction` knows the load of each moment at once and nothing of what comes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from pdserve.ratio.profile import PerformanceProfile
from pdserve.sim.clairvoyant import clairvoyant
from pdserve.sim.closed_loop import Run, plant_profile, run
from pdserve.sim.fluid import fluid_device_hours
from pdserve.sim.policies.reaction import Reaction
from pdserve.sim.policies.registry import POLICIES
from pdserve.sim.results import RunResult, Series, judge, series_of
from pdserve.sim.shapes import DRAWN, FIRST_13, TrafficShape
from pdserve.sim.traces import azure, mooncake
from pdserve.terms.json import JsonObject

Reference = Literal["clairvoyant", "fluid"]
CLAIRVOYANT, FLUID, REACTION = "clairvoyant", "fluid", "reaction"


class ExperimentError(Exception):
    """There is no such experiment or policy; the message names those that exist."""


@dataclass(frozen=True, slots=True)
class Line:
    """One run's figures, and what happened over time."""

    shape: str
    policy: str
    seed: int
    result: RunResult
    series: Series = field(repr=False)

    def to_json(self) -> JsonObject:
        """The line as scripts read it."""
        figures = asdict(self.result)
        names = {"shape": self.shape, "policy": self.policy, "seed": self.seed}
        return {**names, **figures, "series": asdict(self.series)}


def known_shapes(
    seed: int, azure_trace: Path | None, mooncake_trace: Path | None
) -> Mapping[str, TrafficShape]:
    """All shapes by name; those of traces only where their file was named.

    Raises:
        TraceError: a file cannot be read as the trace it is named as.
    """
    found = dict(DRAWN)
    if azure_trace is not None:
        shape = azure(azure_trace, seed)
        found[shape.name] = shape
    if mooncake_trace is not None:
        shape = mooncake(mooncake_trace, seed)
        found[shape.name] = shape
    return found


def shapes_of(experiment: str, known: Mapping[str, TrafficShape]) -> list[TrafficShape]:
    """The shapes of an experiment: one by its name, or those of `table`.

    Raises:
        ExperimentError: there is none of that name.
    """
    if experiment == "table":
        return [known[name] for name in FIRST_13 if name in known]
    if experiment not in known:
        raise ExperimentError(f"experiment {experiment!r}: want table, {', '.join(known)}")
    return [known[experiment]]


def policies_of(names: Sequence[str]) -> list[str]:
    """The policies that were named, or all.

    Raises:
        ExperimentError: there is none of a name.
    """
    for name in names:
        if name not in POLICIES:
            raise ExperimentError(f"policy {name!r}: want one of {', '.join(POLICIES)}")
    return list(names or POLICIES)


def run_policy(
    shape: TrafficShape,
    policy: str,
    seed: int,
    progress: Callable[[float], None] = lambda _share: None,
    profile: PerformanceProfile | None = None,
) -> Line:
    """Run one shape under one policy; `progress` hears the share of its time that has passed.

    `profile`: the plant's, in place of `plant_profile()`.
    """
    return _line(run(shape, POLICIES[policy], seed, progress, profile), policy, seed)


def run_clairvoyant(
    shape: TrafficShape, seed: int, profile: PerformanceProfile | None = None
) -> Line:
    """The feasible clairvoyant's replay; `profile`: the plant's, in place of `plant_profile()`."""
    return _line(clairvoyant(shape, seed, profile or plant_profile()).run, CLAIRVOYANT, seed)


def run_reaction(shape: TrafficShape, seed: int) -> Line:
    """What a law reaches that knows the present load exactly, and has the shape's cold start."""
    return _line(run(shape, Reaction, seed), REACTION, seed)


def run_fluid(shape: TrafficShape, seed: int) -> float:
    """Device-hours of the fluid bound."""
    return fluid_device_hours(shape, seed, plant_profile())


def _line(done: Run, policy: str, seed: int) -> Line:
    return Line(done.shape.name, policy, seed, judge(done), series_of(done))
