"""Evaluates the shift of load: the claims, and the comparison with fixed counts. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from localcluster.demo.report import Comparison, ResultLine, Side
from localcluster.demo.text import in_words
from localcluster.demo.watch import Watch
from pdserve.cli.load import Sample

PERIODS_LIMIT = 3
CHAT_TTFT = 2.0
"""TTFT target of scenario chat in examples/demo-pdservice.yaml, seconds."""
TARGET = 0.9
"""Attainment target there."""
DEVICES_EACH = 4
"""Devices of one instance there."""
BEFORE, END = 34.0, 100.0
"""When the mix shifts, and when the last request is sent: seconds since the first."""
_LAST = 20.0
"""Seconds after the shift, and before the end, that are judged by themselves."""


@dataclass(frozen=True)
class Measured:
    """What was seen of the shift, with pdserve and beside it with fixed counts."""

    watch: Watch
    own: Sequence[Sample]
    """Chat requests to the service whose counts pdserve sets."""
    beside: Sequence[Sample]
    """The same requests to the service with fixed counts."""
    search: Sequence[Sample]
    """Requests of the other scenario, to the first service only."""
    beside_instances: int
    beside_stayed: bool
    """True when the instances with fixed counts were the same at the end as at the start."""
    control_period: float
    """Seconds."""
    pacing: str
    """In words: how many instances kept the times of their device profile."""


def claims(m: Measured) -> list[ResultLine]:
    """What is claimed of the shift, in the order of the report."""
    own, other = _sides(m)
    return [_direction(m), _recovery(m), _better(own, other, stayed=m.beside_stayed)]


def comparison(m: Measured) -> Comparison:
    """Both sides, with what to know of the comparison."""
    own, other = _sides(m)
    p, d = m.watch.counts_at(0)
    notes = [
        f"The fixed numbers, {in_words(f'{p}P{d}D')}, are those that pdserve had for the first "
        "part of the run.",
        "The service with fixed numbers has pdserve's gateway and placement as well. So this "
        "shows what it is worth to adjust the numbers, and nothing else of pdserve.",
        *_saved(m, own),
        f"Both ran at the same time on the same processor cores: {m.pacing}. Where some did not, "
        "this machine was too busy for the comparison to mean much.",
    ]
    return Comparison(own, other, notes)


def attainment(samples: Iterable[Sample]) -> float:
    """Share (0 to 1) of all offered whose first token came in time; NaN where nothing was offered.

    What was refused counts as missed.
    """
    offered = list(samples)
    return sum(map(_met, offered)) / len(offered) if offered else float("nan")


def devices(watch: Watch) -> list[tuple[float, int]]:
    """(second, devices held from then on) of chat: what is wanted, or still serves, is held."""
    held: list[tuple[float, int]] = []
    for s in watch.sights:
        instances = max(s.prefill, s.prefill_ready) + max(s.decode, s.decode_ready)
        if not held:
            held.append((0.0, instances * DEVICES_EACH))
        elif held[-1][1] != instances * DEVICES_EACH and s.at < END:
            held.append((s.at, instances * DEVICES_EACH))
    return held


def _sides(m: Measured) -> tuple[Side, Side]:
    return (
        _side("with pdserve", m.own, devices(m.watch)),
        _side("fixed numbers", m.beside, [(0.0, m.beside_instances * DEVICES_EACH)]),
    )


def _side(name: str, samples: Sequence[Sample], held: Sequence[tuple[float, int]]) -> Side:
    after = [s for s in samples if s.at >= BEFORE]
    until = [at for at, _ in held[1:]] + [END]
    device_seconds = sum(n * (end - at) for (at, n), end in zip(held, until, strict=True))
    return Side(
        name,
        offered=len(after),
        in_time=sum(map(_met, after)),
        late=sum(s.ok and not _met(s) for s in after),
        refused=sum(not s.ok for s in after),
        end_share=attainment(_last(after)),
        devices_mean=device_seconds / END,
        devices_most=max(n for _, n in held),
    )


def _direction(m: Measured) -> ResultLine:
    p0, d0 = m.watch.counts_at(BEFORE)
    p1, d1 = m.watch.counts_at(END)
    first = next(
        (s for s in m.watch.sights if s.at > BEFORE and s.prefill * d0 > p0 * s.decode), None
    )
    took = first.at - BEFORE if first else float("inf")
    changed = in_words(f"{p0}P{d0}D -> {p1}P{d1}D") + (
        f", first step after {took:.0f} s = {took / m.control_period:.1f} control periods"
        if first
        else ""
    )
    return ResultLine(
        "ratio-direction",
        f"after the shift the share of prefill grows within {PERIODS_LIMIT} control periods",
        changed,
        took <= PERIODS_LIMIT * m.control_period,
    )


def _recovery(m: Measured) -> ResultLine:
    calm = attainment([s for s in m.own if s.at < BEFORE])
    shift = attainment([s for s in m.own if BEFORE <= s.at < BEFORE + _LAST])
    end = attainment(_last(m.own))
    return ResultLine(
        "ttft-recovers",
        f"the first token is in time for {TARGET:.0%} of all offered requests again",
        f"before {calm:.0%}, just after the shift {shift:.0%}, at the end {end:.0%}",
        end >= TARGET,
    )


def _better(own: Side, other: Side, *, stayed: bool) -> ResultLine:
    return ResultLine(
        "better-than-fixed",
        "after the shift more requests are in time than with fixed numbers of instances",
        f"{own.share:.0%} against {other.share:.0%}, at the end {own.end_share:.0%} against "
        f"{other.end_share:.0%}" + ("" if stayed else "; but the fixed instances changed"),
        own.share > other.share and stayed,
    )


def _saved(m: Measured, own: Side) -> list[str]:
    """Devices saved beside counts that are always as large as at the end; none, if those failed."""
    p, d = m.watch.counts_at(END)
    always = (p + d) * DEVICES_EACH
    if own.end_share < TARGET or always <= own.devices_mean:
        return []
    return [
        f"Devices saved: {in_words(f'{p}P{d}D')} from the start would have been enough for both "
        f"parts, with {always} devices all the time (computed, not run). pdserve held "
        f"{own.devices_mean:.1f} on average, {1 - own.devices_mean / always:.0%} fewer. It saves "
        "more where the quiet times are longer, and nothing where there are none."
    ]


def _met(sample: Sample) -> bool:
    return sample.ok and sample.ttft is not None and sample.ttft <= CHAT_TTFT


def _last(samples: Iterable[Sample]) -> list[Sample]:
    return [s for s in samples if s.at >= END - _LAST]
