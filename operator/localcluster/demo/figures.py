"""The figures of the report, made from records and measurements, each with its text in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from localcluster.demo.chart import Figure, Layer, Panel
from localcluster.demo.judge import (
    BEFORE,
    CHAT_TTFT,
    DEVICES_EACH,
    END,
    TARGET,
    Measured,
    attainment,
    devices,
)
from localcluster.demo.text import in_words
from localcluster.demo.watch import Watch
from pdserve.cli.load import Sample

WINDOW = 10.0
"""Seconds per pair of bars."""
_SHIFT = (BEFORE, "the requests change")


def of_shift(m: Measured) -> list[Figure]:
    """Figures of the shift of load."""
    return [
        _counts(m.watch, m.beside_instances),
        _in_time(m.own, m.beside, m.search),
        _first_token(m.own, m.beside),
    ]


def _counts(watch: Watch, fixed_instances: int) -> Figure:
    x = [s.at for s in watch.sights]

    def panel(title: str, wanted: Sequence[int], ready: Sequence[int]) -> Panel:
        return Panel(
            title,
            [
                Layer("ready", "area", "own", x, ready),
                Layer("wanted by pdserve", "line", "own", x, wanted),
            ],
            height=84,
        )

    held = devices(watch)
    (p0, d0), (p1, d1) = watch.counts_at(BEFORE), watch.counts_at(watch.sights[-1].at)
    changes = [s.at for s in watch.sights if s.at > BEFORE and (s.prefill, s.decode) != (p0, d0)]
    when = f"At second {changes[0]:.0f} pdserve changes" if changes else "pdserve does not change"
    return Figure(
        "counts",
        "Instances and devices of chat",
        "pdserve first wants more prefill instances, then they become ready. The service with "
        "fixed numbers holds the same devices throughout.",
        f"Step plot over {END:.0f} seconds; the requests change at second {BEFORE:.0f}. {when} "
        f"what it wants from {in_words(f'{p0}P{d0}D')} to {in_words(f'{p1}P{d1}D')}. Devices held "
        f"go from {held[0][1]} to {held[-1][1]}; with fixed numbers they stay at "
        f"{fixed_instances * DEVICES_EACH}.",
        END,
        [
            panel(
                "prefill instances",
                [s.prefill for s in watch.sights],
                [s.prefill_ready for s in watch.sights],
            ),
            panel(
                "decode instances",
                [s.decode for s in watch.sights],
                [s.decode_ready for s in watch.sights],
            ),
            Panel(
                "devices held",
                [
                    Layer(
                        "held with fixed numbers", "area", "other",
                        [0.0], [float(fixed_instances * DEVICES_EACH)],
                    ),
                    Layer(
                        "held with pdserve", "line", "own",
                        [at for at, _ in held], [float(n) for _, n in held],
                    ),
                ],
                height=84,
            ),
        ],
        marks=[_SHIFT],
    )  # fmt: skip


def _in_time(own: Sequence[Sample], beside: Sequence[Sample], others: Sequence[Sample]) -> Figure:
    starts = [i * WINDOW for i in range(int(END / WINDOW))]

    def shares(samples: Sequence[Sample]) -> list[float]:
        return [100 * attainment([s for s in samples if a <= s.at < a + WINDOW]) for a in starts]

    ours, theirs = shares(own), shares(beside)
    listed = "; ".join(
        f"from second {a:.0f}: {o:.0f} and {t:.0f}"
        for a, o, t in zip(starts, ours, theirs, strict=True)
    )
    searched = sum(s.ok for s in others)
    return Figure(
        "attainment",
        "Share of all offered chat requests with the first token in time",
        f"By the time at which a request was sent, {WINDOW:.0f} seconds per pair of bars. The "
        f"other scenario, search, has instances of its own and answered {searched} of "
        f"{len(others)} requests meanwhile.",
        f"Pairs of bars, percent with pdserve and with fixed numbers. {listed}. "
        f"The target is {TARGET:.0%}.",
        END,
        [
            Panel(
                "in time",
                [
                    Layer("with pdserve", "bars", "own", starts, ours),
                    Layer("with fixed numbers", "bars", "other", starts, theirs),
                ],
                top=100.0,
                target=(TARGET * 100, f"target, {TARGET:.0%}"),
                unit="%",
                height=150,
            )
        ],
        marks=[_SHIFT],
        window=WINDOW,
    )


def _first_token(own: Sequence[Sample], beside: Sequence[Sample]) -> Figure:
    highest = max((s.ttft or 0.0 for s in [*own, *beside] if s.ok), default=0.0)
    top = max(1.4 * CHAT_TTFT, 1.25 * highest)  # leaves a lane for crosses

    def panel(title: str, tone: Literal["own", "other"], samples: Sequence[Sample]) -> Panel:
        done = [s for s in samples if s.ok and s.ttft is not None]
        lost = [s for s in samples if not s.ok]
        return Panel(
            title,
            [
                Layer(title, "dots", tone, [s.at for s in done], [s.ttft or 0.0 for s in done]),
                Layer(
                    "refused or failed", "crosses", "quiet",
                    [s.at for s in lost], [0.95 * top] * len(lost),
                ),
            ],
            top=top,
            target=(CHAT_TTFT, f"target, {CHAT_TTFT:g} s"),
            unit=" s",
            height=120,
        )  # fmt: skip

    def told(samples: Sequence[Sample]) -> str:
        after = [s for s in samples if s.at >= BEFORE]
        times = sorted(s.ttft for s in after if s.ok and s.ttft is not None)
        median = f"{times[len(times) // 2]:.1f} s" if times else "unknown"
        return f"median {median} after the change, {sum(not s.ok for s in after)} refused or failed"

    return Figure(
        "first-token",
        "Time to the first token of each chat request",
        "One dot per answered request, at the time it was sent. A request that could not be "
        "answered in time is refused at once; it is a cross at the upper edge.",
        f"Two dot plots over {END:.0f} seconds. With pdserve: {told(own)}. "
        f"With fixed numbers: {told(beside)}.",
        END,
        [panel("with pdserve", "own", own), panel("with fixed numbers", "other", beside)],
        marks=[_SHIFT],
    )


def loss(watch: Watch, killed_at: float, took: float, end: float) -> Figure:
    """Decode instances wanted and ready while one is killed.

    All in seconds since the watch began, but `took`: seconds until another was ready.
    """
    x = [s.at for s in watch.sights]
    ready = [float(s.decode_ready) for s in watch.sights]
    wanted = [float(s.decode) for s in watch.sights]
    return Figure(
        "loss",
        "Decode instances of chat while one is killed",
        "The line says how many there should be, the area how many serve. One new instance takes "
        "the place of the lost one; the others go on.",
        f"Step plot over {end:.0f} seconds. {wanted[0]:.0f} decode instances are wanted all the "
        f"time. At second {killed_at:.0f} one is killed; the ready ones fall to "
        f"{min(ready):.0f} and are {ready[-1]:.0f} again {took:.1f} seconds later.",
        end,
        [
            Panel(
                "decode instances",
                [
                    Layer("ready", "area", "own", x, ready),
                    Layer("wanted", "line", "own", x, wanted),
                ],
            )
        ],
        marks=[(killed_at, "one is killed")],
    )
