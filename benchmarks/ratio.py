"""The ratio loop beside the published laws of others, on the simulator's thirteen shapes.

Every run's figures are kept under `build/bench/ratio/`, named by a digest of the code that made
them: a bench that was interrupted goes on where it stopped, and changed code is run again.

    ratio.py [--seeds N] [--jobs N] [--azure CSV] [--mooncake JSONL] [--policy NAME ...]

SEEDS in the environment stands for --seeds (default 3). Without its file a trace's shape is left
out, and the report says so. Floors: device-hours of our loop at most 1.15 times the feasible
clairvoyant's in the geometric mean, its target met on 11 of 13, its attainment at least the best of
the others' at no more device-hours, and tide and ramp at most 1.05 times the clairvoyant's. Beside
the table stands what reaction alone can reach (`sim.policies.reaction`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import OUT, ROOT, Progress, Row, report

from pdserve.sim.experiments import (
    CLAIRVOYANT,
    FLUID,
    REACTION,
    known_shapes,
    policies_of,
    run_clairvoyant,
    run_fluid,
    run_policy,
    run_reaction,
)
from pdserve.sim.kernel.compiled import COMPILED
from pdserve.sim.policies.registry import POLICIES
from pdserve.sim.results import BucketResult, RunResult
from pdserve.sim.shapes import FIRST_13
from pdserve.sim.summary import (
    PolicySummary,
    RunCell,
    aligned,
    policy_table,
    run_table,
    summarise,
)

KEPT = OUT / "ratio"
OURS = "pdserve"
AT_TARGET = 11 / 13
"""Part of the shapes at which our loop must meet its target."""
SIMULATOR = (
    "sim/arrivals.py", "sim/closed_loop.py", "sim/kernel", "sim/plant.py", "sim/results.py",
    "sim/series_names.py", "sim/shapes.py", "sim/traces.py", "sim/traffic.py",
    "sim/virtual_prometheus.py", "sim/policies/base.py", "sim/policies/signals.py",
    "sim/policies/role_signals.py", "ratio/profile.py", "ratio/presets.py",
)  # fmt: skip
LOOP = ("ratio", "telemetry", "sim/policies/pdserve.py")
REFERENCES = ("sim/clairvoyant.py", "sim/fluid.py", "sim/policies/schedule.py")
REACTING = ("sim/policies/reaction.py", "ratio/choose.py", "ratio/model.py", "ratio/queueing.py")
SHARED = ("sim/policies/forecast.py", "sim/policies/hpa.py", "sim/policies/square_root.py")
"""Code below operator/pdserve that every run depends on, and those of our own loop, of the
references, of what reaction alone reaches, and of the others beside the module of their law."""


@dataclass(frozen=True)
class Job:
    """One run to make."""

    shape: str
    policy: str
    seed: int
    azure: Path | None
    mooncake: Path | None

    @property
    def path(self) -> Path:
        """Where its figures are kept."""
        return KEPT / f"{self.shape}-{self.policy}-{self.seed}-{digest(self.policy)}.json"


@cache
def digest(policy: str) -> str:
    """Of the code that a run depends on."""
    found = hashlib.sha256()
    if policy == OURS:
        own: tuple[str, ...] = LOOP
    elif policy in (CLAIRVOYANT, FLUID):
        own = REFERENCES
    elif policy == REACTION:
        own = REACTING
    else:
        own = (
            *SHARED,
            POLICIES[policy].__module__.removeprefix("pdserve.").replace(".", "/") + ".py",
        )
    for part in (*SIMULATOR, *own):
        path = ROOT / "operator" / "pdserve" / part
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            found.update(file.read_bytes())
    return found.hexdigest()[:12]


def make(job: Job) -> None:
    """Run one job and keep its figures."""
    shape = known_shapes(job.seed, job.azure, job.mooncake)[job.shape]
    if job.policy == FLUID:
        figures: dict[str, object] = {"device_hours": run_fluid(shape, job.seed)}
    elif job.policy == CLAIRVOYANT:
        figures = asdict(run_clairvoyant(shape, job.seed).result)
    elif job.policy == REACTION:
        figures = asdict(run_reaction(shape, job.seed).result)
    else:
        figures = asdict(run_policy(shape, job.policy, job.seed).result)
    job.path.parent.mkdir(parents=True, exist_ok=True)
    part = job.path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps({**figures, "target": shape.slo.attainment}))
    part.replace(job.path)


def make_all(jobs: Sequence[Job], workers: int, progress: Progress) -> None:
    """Run what is not kept yet; workers are forked, so that all go by the code as it is now."""
    due = [job for job in jobs if not job.path.exists()]
    progress(f"{len(jobs)} runs, {len(jobs) - len(due)} of them kept from before")
    with ProcessPoolExecutor(workers, get_context("fork")) as pool:
        running = {pool.submit(make, job): job for job in due}
        for number, done in enumerate(as_completed(running), 1):
            done.result()
            job = running[done]
            if number % 10 == 0 or number == len(due):
                progress(f"{number}/{len(due)}: {job.shape}, {job.policy}, seed {job.seed}")


def cell(job: Job) -> RunCell:
    """A kept run as a cell of the table."""
    figures = json.loads(job.path.read_text())
    target = figures.pop("target")
    buckets = tuple(BucketResult(**bucket) for bucket in figures.pop("buckets"))
    result = RunResult(buckets=buckets, **figures)
    return RunCell(job.shape, job.policy, job.seed, result, target)


def reachable(
    cells: Sequence[RunCell], reacting: Sequence[RunCell], best: dict[tuple[str, int], float]
) -> str:
    """A line for each shape: what our loop attains, and what reaction alone can, over the seeds."""
    lines = [("shape", "target", "our loop", "at the target", "reaction", "device-h / C")]
    for shape in dict.fromkeys(c.shape for c in reacting):
        ours = [c for c in cells if c.shape == shape and c.policy == OURS]
        exact = [c for c in reacting if c.shape == shape]
        shares = [c.result.attainment for c in ours]
        cost = [c.result.device_hours / best[shape, c.seed] for c in exact]
        met = sum(share >= exact[0].target for share in shares)
        lines.append((
            shape, f"{100 * exact[0].target:.0f} %",
            f"{100 * sum(shares) / len(shares):.2f} %" if shares else "-",
            f"{met} of {len(shares)}",
            f"{100 * sum(c.result.attainment for c in exact) / len(exact):.2f} %",
            f"{sum(cost) / len(cost):.2f}",
        ))  # fmt: skip
    return aligned(lines)


def rows(
    cells: Sequence[RunCell], best: dict[tuple[str, int], float], summaries: Sequence[PolicySummary]
) -> Iterator[Row]:
    """What must hold of our loop."""
    ours = next((s for s in summaries if s.policy == OURS), None)
    if ours is None or ours.cost is None:
        return
    yield Row("device-hours of our loop, geometric mean", ours.cost, "x", "clairvoyant", 1.0, 1.15,
              "lower", ours.runs, ours.cost_spread)  # fmt: skip
    by_shape: dict[str, list[RunCell]] = {}
    for c in cells:
        if c.policy == OURS:
            by_shape.setdefault(c.shape, []).append(c)
    met = sum(
        sum(c.result.attainment for c in mine) / len(mine) >= mine[0].target
        for mine in by_shape.values()
    )
    yield Row("shapes at which our loop meets its target", float(met), "",
              "all of them; attainment is the mean over seeds", float(len(by_shape)), AT_TARGET,
              "higher", ours.runs, 0.0)  # fmt: skip
    others = [
        s for s in summaries
        if s.policy not in (OURS, CLAIRVOYANT) and s.cost is not None and s.cost <= ours.cost
    ]  # fmt: skip
    if others:
        rival = max(others, key=lambda s: s.attained)
        yield Row("attainment of our loop", 100 * ours.attained, "%",
                  f"{rival.policy}, best of those with no more device-hours",
                  100 * rival.attained, 0.999, "higher", ours.runs,
                  100 * ours.attained_spread)  # fmt: skip
    for shape in ("tide", "ramp"):
        mine = [c for c in cells if c.policy == OURS and c.shape == shape]
        ratios = [c.result.device_hours / best[c.shape, c.seed] for c in mine]
        if ratios:
            yield Row(f"device-hours of our loop, {shape}", sum(ratios) / len(ratios), "x",
                      "clairvoyant", 1.0, 1.05, "lower", len(ratios),
                      max(ratios) - min(ratios))  # fmt: skip


def main() -> int:
    """The exit status: 1 when a floor fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=int(os.environ.get("SEEDS", "3")))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--azure", type=Path)
    parser.add_argument("--mooncake", type=Path)
    parser.add_argument("--policy", action="append", default=[])
    given = parser.parse_args()
    progress = Progress()
    if not COMPILED:
        progress("numba is not installed, so this takes ten times as long: pip install -e '.[sim]'")
    names = policies_of(given.policy)
    seeds = range(1, given.seeds + 1)
    shapes = [n for n in FIRST_13 if n in known_shapes(1, given.azure, given.mooncake)]
    for absent in sorted(set(FIRST_13) - set(shapes)):
        progress(f"left out: {absent}, whose trace was not named (--azure, --mooncake)")
    jobs = [
        Job(shape, policy, seed, given.azure, given.mooncake)
        for seed in seeds
        for shape in shapes
        for policy in (CLAIRVOYANT, FLUID, REACTION, *names)
    ]
    make_all(jobs, given.jobs, progress)
    cells = [cell(job) for job in jobs if job.policy not in (FLUID, REACTION)]
    reacting = [cell(job) for job in jobs if job.policy == REACTION]
    best = {(c.shape, c.seed): c.result.device_hours for c in cells if c.policy == CLAIRVOYANT}
    fluid = [json.loads(j.path.read_text())["device_hours"] / best[j.shape, j.seed]
             for j in jobs if j.policy == FLUID]  # fmt: skip
    summaries = summarise(cells, best)
    shown = sorted(cells, key=lambda c: (c.shape, list(POLICIES).index(c.policy))
                   if c.policy in POLICIES else (c.shape, -1))  # fmt: skip
    print(run_table([c for c in shown if c.seed == 1], best), end="\n\n")
    print(policy_table(summaries), end="\n\n")
    print(reachable(cells, reacting, best))
    print(f"\nfluid bound / C: {sum(fluid) / len(fluid):.3f} (mean of {len(fluid)}); "
          f"{len(shapes)} shapes, seeds 1 to {given.seeds}\n")  # fmt: skip
    return report("ratio", list(rows(cells, best, summaries)))


if __name__ == "__main__":
    sys.exit(main())
