"""A made-up shift of load as the demo measures it: counts, and what became of each request."""

from __future__ import annotations

from localcluster.demo.judge import BEFORE, END, Measured
from localcluster.demo.watch import Sight, Watch
from pdserve.cli.load import Sample

GROWS_AT, READY_AT = 50.0, 54.0


def watch(prefill: int = 4) -> Watch:
    """2 prefill + 4 decode; from `GROWS_AT` on `prefill` are wanted, at `READY_AT` ready."""
    seen = Watch()
    for half in range(int(2 * END) + 4):
        at = half / 2
        wanted = prefill if at >= GROWS_AT else 2
        ready = prefill if at >= READY_AT else 2
        seen.sights.append(Sight(at, wanted, 4, ready, 4))
    return seen


def samples(bad_from: float = END, bad_until: float = END, label: str = "chat") -> list[Sample]:
    """Two requests a second; those of the bad time are in turns late and refused."""
    made = []
    for index in range(int(2 * END)):
        at = index / 2
        sample = Sample(index, label, "m", at, status=200, ttft=0.5)
        if bad_from <= at < bad_until:
            sample.ttft = 3.0 if index % 2 else None
            sample.status, sample.error = (200, "") if index % 2 else (503, "overloaded")
        made.append(sample)
    return made


def measured(*, stayed: bool = True, prefill: int = 4, own_bad_until: float = READY_AT) -> Measured:
    """pdserve misses from the shift until `own_bad_until`, the fixed counts from it to the end."""
    return Measured(
        watch(prefill),
        own=samples(BEFORE, own_bad_until),
        beside=samples(BEFORE),
        search=samples(label="search"),
        beside_instances=6,
        beside_stayed=stayed,
        control_period=10.0,
        pacing="17 of 17 instances kept the times of their device profile",
    )
