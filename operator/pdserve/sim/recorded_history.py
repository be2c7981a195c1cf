"""A scenario's own history as a `TrafficShape`, so that every policy can be run on it.

From a record of decisions (`--decisions-log`), or from rates that a Prometheus keeps. What a
history holds is rates and mean lengths over time: requests are drawn from them, Poisson arrivals
with lognormal lengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pdserve.ratio.demand import DEFAULT_SPREAD
from pdserve.ratio.profile import PerformanceProfile
from pdserve.ratio.records import RecordError, decode
from pdserve.ratio.types import (
    Bounds,
    Counts,
    DecisionInput,
    Demand,
    Range,
    RequestWindow,
    ScenarioSample,
    known,
)
from pdserve.sim.closed_loop import CAPACITY
from pdserve.sim.shapes import Mix, TrafficShape
from pdserve.sizing.size import SizeError, SizeQuestion, size
from pdserve.terms import Slo
from pdserve.wire.bounds import WireError, parse_json

STEP = 60.0
"""Seconds between two points of a history."""
LONGEST = 172_800.0
"""Seconds of a history at most; of a longer one the newest are taken."""
LONGEST_GAP = 600.0
"""Seconds without a sample over which the rate is taken as 0."""
LEAST = 300.0
FEW_TOKENS = 3.0


class HistoryError(Exception):
    """A history cannot be simulated; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class HistoryPoint:
    """What was asked around one moment."""

    time: float
    """Seconds since the epoch."""
    rate: float
    """Requests per second."""
    prompt: float
    """Mean tokens; likewise output."""
    output: float
    hit: float = 0.0
    """Share of prompt tokens that came from caches, 0 to 1."""


@dataclass(slots=True)
class History:
    """Points in order of time, and what the scenario was allowed."""

    slo: Slo
    bounds: Bounds
    start: Counts
    cold_start: float
    profile: PerformanceProfile | None
    points: list[HistoryPoint] = field(default_factory=list)
    seconds: dict[tuple[int, int, int], float] = field(default_factory=dict)
    """How long which counts were wanted."""
    feasible: float = 0.0
    """Requests that were offered and feasible, of the windows that became points."""
    met: float = 0.0
    """Of those, the ones that met the SLO."""

    def instance_hours(self) -> float:
        """Of the counts that were wanted."""
        return sum(g * (p + d) * s for (g, p, d), s in self.seconds.items()) / 3600

    def attainment(self) -> float | None:
        """Measured met / (offered - infeasible), 0 to 1; None where nothing was measured."""
        return self.met / self.feasible if self.feasible >= 1.0 else None


def history_of_record(lines: Iterable[str], scenario: str | None) -> History:
    """The history of one scenario in a record.

    `scenario`: `NAME`, or `SERVICE/NAME`; None where the record has but one.

    Raises:
        HistoryError: the record is none, has several scenarios, or too little of this one.
    """
    found: History | None = None
    names: set[str] = set()
    last: DecisionInput | None = None
    for number, line in enumerate(lines, 1):
        inp = _input(line, number)
        name = f"{inp.service}/{inp.scenario}"
        if scenario is not None and scenario not in (name, inp.scenario):
            continue
        names.add(name)
        if len(names) > 1:
            raise HistoryError(f"several scenarios: {', '.join(sorted(names))}; name one with "
                               "--scenario SERVICE/NAME")  # fmt: skip
        if found is None:
            found = History(inp.slo, inp.bounds, inp.current, inp.settings.cold_start, None)
        found.slo, found.bounds = inp.slo, inp.bounds
        found.profile = inp.profile or found.profile
        found.cold_start = inp.settings.cold_start
        if last is not None:
            key = (last.current.groups, last.current.prefill, last.current.decode)
            elapsed = min(max(inp.now - last.now, 0.0), LONGEST_GAP)
            found.seconds[key] = found.seconds.get(key, 0.0) + elapsed
        last = inp
        if isinstance(inp.sample, ScenarioSample) and inp.sample.windows:
            _measure(found, inp.now, inp.sample.windows[0])
    if found is None:
        raise HistoryError("the record has no decision" + (f" of {scenario}" if scenario else ""))
    return found


def _input(line: str, number: int) -> DecisionInput:
    try:
        raw = parse_json(line)
        if not isinstance(raw, dict) or "input" not in raw:
            raise HistoryError(f"line {number}: want an object with keys input and decision")
        inp = decode(raw["input"], DecisionInput, "input")
    except (WireError, RecordError) as error:
        raise HistoryError(f"line {number}: {error}") from error
    assert isinstance(inp, DecisionInput)  # noqa: S101 -- what `decode` returns for this type
    return inp


def _measure(history: History, now: float, window: RequestWindow) -> None:
    """A point every `STEP`, and what was met in its window."""
    if history.points and now - history.points[-1].time < STEP:
        return
    if known(window.offered) and known(window.met):
        infeasible = window.infeasible if known(window.infeasible) else 0.0
        history.feasible += max(window.offered - infeasible, 0.0)
        history.met += window.met
    _add(history.points, now, window)


def _add(points: list[HistoryPoint], now: float, window: RequestWindow) -> None:
    """A window without requests keeps the lengths of before."""
    arrived = window.arrived if known(window.arrived) else window.offered
    if not known(arrived):
        return
    before = points[-1] if points else None
    prompt, output, hit = (before.prompt, before.output, before.hit) if before else (0.0, 0.0, 0.0)
    completed = window.completed
    if known(completed) and completed >= 1.0:
        if known(window.prompt_tokens):
            prompt = window.prompt_tokens / completed
        if known(window.output_tokens):
            output = window.output_tokens / completed
        if known(window.cached_tokens) and known(window.prompt_tokens) and window.prompt_tokens > 0:
            hit = min(window.cached_tokens / window.prompt_tokens, 0.99)
    if known(window.arrived) and known(window.arrived_tokens) and window.arrived >= 1.0:
        prompt = window.arrived_tokens / window.arrived
    points.append(HistoryPoint(now, arrived / window.seconds, prompt, output, hit))


def history_shape(history: History, name: str) -> TrafficShape:
    """The history as a shape for one P/D group that holds all instances of a role.

    Raises:
        HistoryError: there is too little traffic, or more instances than the simulator holds.
    """
    points = _spanned(history.points)
    mixes = _mixes(points)
    begin = points[0].time
    duration = points[-1].time - begin
    return TrafficShape(
        name, tuple((p.time - begin, p.rate) for p in points), duration,
        _in_one_group(history.start, history.bounds), mixes,
        note=f"{len(points)} points over {duration / 3600:.1f} h", slo=history.slo,
        bounds=_one_group(history.bounds), cold_start=history.cold_start,
    )  # fmt: skip


def _spanned(points: Sequence[HistoryPoint]) -> list[HistoryPoint]:
    """The newest points, with zeros where nothing was measured for long."""
    kept = [p for p in points if p.time >= points[-1].time - LONGEST] if points else []
    useful = [p for p in kept if p.prompt >= 1.0 and p.output >= 1.0]
    if not useful or kept[-1].time - kept[0].time < LEAST:
        raise HistoryError(
            f"too little: want {LEAST / 60:.0f} minutes with requests that completed"
        )
    if not any(p.rate > 0.0 for p in kept):
        raise HistoryError("no request arrived in this history")
    found: list[HistoryPoint] = []
    for point in kept:
        if found and point.time <= found[-1].time:
            continue
        if found and point.time - found[-1].time > LONGEST_GAP:
            before = found[-1]
            found.append(HistoryPoint(before.time + 1.0, 0.0, before.prompt, before.output))
            found.append(HistoryPoint(point.time - 1.0, 0.0, before.prompt, before.output))
        found.append(point)
    return found


def _mixes(points: Sequence[HistoryPoint]) -> tuple[Mix, ...]:
    """Mean lengths from each point on; before the first that are known, those."""
    first = next(p for p in points if p.prompt >= 1.0 and p.output >= 1.0)
    begin, last, found = points[0].time, first, []
    for point in points:
        last = point if point.prompt >= 1.0 and point.output >= 1.0 else last
        found.append(Mix(point.time - begin, last.prompt, max(last.output, FEW_TOKENS), last.hit))
    return tuple(found)


def _one_group(bounds: Bounds) -> Bounds:
    """Bounds of all groups together, within what the simulator holds."""
    most = bounds.groups.max
    return Bounds(
        Range(1, 1),
        Range(bounds.prefill.min, min(bounds.prefill.max * most, CAPACITY)),
        Range(bounds.decode.min, min(bounds.decode.max * most, CAPACITY)),
    )


def _in_one_group(counts: Counts, bounds: Bounds) -> Counts:
    whole = Counts(1, counts.total("prefill"), counts.total("decode"))
    if max(whole.prefill, whole.decode) > CAPACITY:
        raise HistoryError(f"{counts}: the simulator holds at most {CAPACITY} instances of a role")
    return _one_group(bounds).clamp(whole)


def history_of_rates(
    ranges: Mapping[str, Mapping[float, float]], slo: Slo, profile: PerformanceProfile | None
) -> History:
    """The history that rates by time give; it starts at the size of its first minutes.

    `ranges`: arrived, arrived_tokens, completed, prompt_tokens, output_tokens and cached_tokens per
    second, by time. `profile`: the plant's.

    Raises:
        HistoryError: no profile is named, or no size meets the SLO at the first rate.
    """
    if profile is None:
        raise HistoryError("a Prometheus does not know the instances: name a profile (--preset)")
    wide = Bounds(Range(1, 1), Range(1, CAPACITY), Range(1, CAPACITY))
    history = History(slo, wide, Counts(1, 1, 1), 60.0, profile)
    for at in sorted(ranges["arrived"]):
        values = {name: series.get(at, 0.0) * STEP for name, series in ranges.items()}
        window = RequestWindow(
            seconds=STEP, scrapes=4.0, offered=values["arrived"], met=values["arrived"],
            ttft_met=values["arrived"], completed=values["completed"],
            prompt_tokens=values["prompt_tokens"], output_tokens=values["output_tokens"],
            cached_tokens=values["cached_tokens"], arrived=values["arrived"],
            arrived_tokens=values["arrived_tokens"],
        )  # fmt: skip
        _add(history.points, at, window)
    history.start = _first_size(history, profile)
    return history


def _first_size(history: History, profile: PerformanceProfile) -> Counts:
    first = next(
        (p for p in history.points if p.rate > 0 and p.prompt >= 1 and p.output >= 1), None
    )
    if first is None:
        return history.start
    uncached = first.prompt * (1.0 - first.hit)
    demand = Demand(
        first.rate, first.prompt, uncached, uncached**2 * DEFAULT_SPREAD, max(first.output, 1.0)
    )
    try:
        return size(SizeQuestion(history.slo, demand, profile)).split.counts
    except SizeError as error:
        raise HistoryError(str(error)) from error
