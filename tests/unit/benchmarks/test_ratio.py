"""The bench of the ratio loop: what it keeps, and which floors it holds our loop to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import ratio
from benchmarks.harness import Progress

from pdserve.sim import experiments
from pdserve.sim.results import RunResult
from pdserve.sim.shapes import DRAWN
from pdserve.sim.summary import RunCell, summarise

TINY = replace(DRAWN["spike"], name="tiny", points=((0, 3), (180, 3)), duration=180.0)


MISSED = "shapes at which our loop meets its target"


def cell(shape: str, policy: str, hours: float, attained: float) -> RunCell:
    result = RunResult(hours, 1000.0, 0.0, attained, 0.9, 1.0, 0.0, 0.0, 0.0, 2, 3, 9, ())
    return RunCell(shape, policy, 1, result, 0.99)


@pytest.mark.parametrize(
    ("ours", "rival", "failing"),
    [
        ((105.0, 0.99), (104.0, 0.98), []),
        ((105.0, 0.97), (104.0, 0.98), [MISSED, "attainment of our loop"]),
        ((105.0, 0.97), (106.0, 0.98), [MISSED]),
        ((110.0, 0.99), (104.0, 0.98), ["device-hours of our loop, ramp"]),
        ((120.0, 0.99), (104.0, 0.98),
         ["device-hours of our loop, geometric mean", "device-hours of our loop, ramp"]),
    ],
)  # fmt: skip
def test_floors(ours: tuple[float, float], rival: tuple[float, float], failing: list[str]) -> None:
    cells = [
        cell("ramp", "clairvoyant", 100.0, 0.995), cell("ramp", "pdserve", *ours),
        cell("ramp", "hpa", *rival),
    ]  # fmt: skip
    best = {("ramp", 1): 100.0}
    found = list(ratio.rows(cells, best, summarise(cells, best)))
    assert [row.what for row in found if not row.ok] == failing


def test_what_reaction_alone_reaches_stands_beside_each_shape() -> None:
    cells = [cell("ramp", "pdserve", 105.0, 0.991), cell("spike", "pdserve", 105.0, 0.975)]
    exact = [cell("ramp", "reaction", 102.0, 0.999), cell("spike", "reaction", 98.0, 0.981)]
    best = {("ramp", 1): 100.0, ("spike", 1): 100.0}
    lines = [line.split() for line in ratio.reachable(cells, exact, best).splitlines()]
    assert lines[1:] == [
        ["ramp", "99", "%", "99.10", "%", "1", "of", "1", "99.90", "%", "1.02"],
        ["spike", "99", "%", "97.50", "%", "0", "of", "1", "98.10", "%", "0.98"],
    ]


def test_a_kept_run_is_not_made_again_and_reads_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ratio, "KEPT", tmp_path)
    monkeypatch.setattr(experiments, "DRAWN", {**DRAWN, "tiny": TINY})
    job = ratio.Job("tiny", "fixed-start", 1, None, None)
    ratio.make_all([job], 1, Progress())
    made = job.path.read_text()
    found = ratio.cell(job)
    assert found.result.offered == sum(bucket.offered for bucket in found.result.buckets) > 300
    assert found.target == 0.99
    figures = {**json.loads(made), "device_hours": 7.0}
    job.path.write_text(json.dumps(figures))
    ratio.make_all([job], 1, Progress())
    assert ratio.cell(job).result.device_hours == 7.0


def test_changed_code_is_run_again() -> None:
    """Our own loop's runs depend on more code than others', and a law's on its own module."""
    digests = {
        ratio.digest(name) for name in ("pdserve", "hpa", "dynamo", "clairvoyant", "reaction")
    }
    assert len(digests) == 5
    assert ratio.digest("dynamo") == ratio.digest("dynamo-throughput")
