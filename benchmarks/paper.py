"""P/D-Serve's published figures beside what comes out here, over stated ranges of assumptions.

    paper.py [--only NAME ...] [--seeds N] [--jobs N]

arXiv 2408.08147 publishes shares and factors, no times, rates or lengths: what it assumed is not
known. Each experiment measures the figure under many assumptions, says the least and the largest,
and names those that yield the paper's. Floors hold our own mechanism to its baseline, never to the
paper's figure. The report is build/bench/paper.json and paper.svg. Every measurement is kept under
build/bench/paper/, named by a digest of the code: an interrupted bench goes on where it stopped.
Without numba (`pip install -e '.[sim]'`) it takes three times as long.

Examples:
    make bench-paper                              # all, three seeds
    SEEDS=5 make bench-paper                      # the same as --seeds 5
    make bench-paper BENCH_ARGS="--only forwarding"
    python benchmarks/paper.py --only forwarding --seeds 3 --jobs 2
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import OUT, ROOT, Progress, Row, report
from benchmarks.parts import paper_aggregated, paper_forwarding, paper_ratio, paper_transfer
from benchmarks.parts.paper_claims import Claim, told
from benchmarks.parts.paper_plot import picture

KEPT = OUT / "paper"
COMMON = ("operator/pdserve/sim", "operator/pdserve/ratio", "tests/support/naive_plant.py")


@dataclass(frozen=True)
class Experiment:
    """One of the paper's figures."""

    name: str
    settings: Callable[[], Sequence[Any]]
    """All assumptions: values that `asdict` reads."""
    measure: Callable[[Any, int], dict[str, float]]
    """The figures under one of them, for a seed."""
    claims: Callable[[Any], list[Claim]]
    rows: Callable[[Any], list[Row]]
    code: tuple[str, ...]
    """What a measurement depends on beside `COMMON`."""


EXPERIMENTS = {
    e.name: e
    for e in (
        Experiment(
            "forwarding", lambda: list(paper_forwarding.settings()), paper_forwarding.measure,
            paper_forwarding.claims, paper_forwarding.rows,
            ("benchmarks/parts/paper_forwarding.py", "benchmarks/parts/local_queues.py"),
        ),
        Experiment(
            "ratio", lambda: list(paper_ratio.settings()), paper_ratio.measure,
            paper_ratio.claims, paper_ratio.rows,
            ("benchmarks/parts/paper_ratio.py", "operator/pdserve/telemetry"),
        ),
        Experiment(
            "transfer", lambda: list(paper_transfer.settings()), paper_transfer.measure,
            paper_transfer.claims, paper_transfer.rows, ("benchmarks/parts/paper_transfer.py",),
        ),
        Experiment(
            "aggregated", lambda: list(paper_aggregated.settings()), paper_aggregated.measure,
            paper_aggregated.claims, paper_aggregated.rows,
            ("benchmarks/parts/paper_aggregated.py", "benchmarks/parts/aggregated.py",
             "benchmarks/parts/paper_ratio.py"),
        ),
    )
}  # fmt: skip


@cache
def digest(name: str) -> str:
    """Of the code that an experiment's measurements depend on."""
    found = hashlib.sha256()
    for part in (*COMMON, *EXPERIMENTS[name].code):
        path = ROOT / part
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            found.update(file.read_bytes())
    return found.hexdigest()[:12]


@dataclass(frozen=True)
class Job:
    """One measurement."""

    experiment: str
    setting: Any
    seed: int

    def path(self, kept: Path) -> Path:
        """Where its figures are kept."""
        named = json.dumps([asdict(self.setting), self.seed], sort_keys=True).encode()
        key = hashlib.sha256(named).hexdigest()[:16]
        return kept / f"{self.experiment}-{digest(self.experiment)}-{key}.json"


def make(job: Job, kept: Path) -> None:
    """Measure, and keep the figures."""
    figures = EXPERIMENTS[job.experiment].measure(job.setting, job.seed)
    path = job.path(kept)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(figures))
    part.replace(path)


def make_all(jobs: Sequence[Job], workers: int, kept: Path, progress: Progress) -> None:
    """Measure what is not kept yet; workers are forked, so that all go by the code as it is now."""
    kept.mkdir(parents=True, exist_ok=True)
    due = [job for job in jobs if not job.path(kept).exists()]
    progress(f"{len(jobs)} measurements, {len(jobs) - len(due)} of them kept from before")
    with ProcessPoolExecutor(workers, get_context("fork")) as pool:
        running = {pool.submit(make, job, kept): job for job in due}
        for number, done in enumerate(as_completed(running), 1):
            done.result()
            if number % 20 == 0 or number == len(due):
                progress(f"{number}/{len(due)}: {running[done].experiment}")


def results(jobs: Sequence[Job], kept: Path) -> dict[Any, list[dict[str, float]]]:
    """Kept figures by setting, in order of seed."""
    found: dict[Any, list[dict[str, float]]] = {}
    for job in jobs:
        found.setdefault(job.setting, []).append(json.loads(job.path(kept).read_text()))
    return found


def measured(
    names: Sequence[str],
    seeds: int,
    workers: int,
    settings: Mapping[str, Sequence[Any]] | None = None,
    kept: Path = KEPT,
) -> tuple[list[Claim], list[Row]]:
    """Claims and rows of some experiments; `settings` in place of an experiment's own."""
    claims, rows, progress = list[Claim](), list[Row](), Progress()
    for name in names:
        experiment = EXPERIMENTS[name]
        assumed = experiment.settings() if settings is None else settings[name]
        jobs = [Job(name, s, seed) for s in assumed for seed in range(1, seeds + 1)]
        progress(f"{name}: {len(assumed)} settings, {seeds} seeds")
        make_all(jobs, workers, kept, progress)
        found = results(jobs, kept)
        claims += experiment.claims(found)
        rows += experiment.rows(found)
    return claims, rows


def main() -> int:
    """The exit status: 1 when a floor fails."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--only", nargs="+", choices=list(EXPERIMENTS), metavar="NAME",
                        help=f"of {', '.join(EXPERIMENTS)}")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=int(os.environ.get("SEEDS", "3")))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    if min(given.seeds, given.jobs) < 1:
        parser.error("--seeds and --jobs are 1 or more")
    claims, rows = measured(given.only or list(EXPERIMENTS), given.seeds, given.jobs)
    print(told(claims), end="\n\n")
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "paper.svg").write_text(picture(claims))
    return report("paper", rows, more={"claims": [c.to_json() for c in claims]})


if __name__ == "__main__":
    sys.exit(main())
