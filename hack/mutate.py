"""Mutation test: does some unit test fail when the code is changed a little?

    python hack/mutate.py --mutants 200 --seed 1            a sample over all strata
    python hack/mutate.py --mutants 40 --only ratio         of one of them

Mutants are drawn by a printed seed, from each module its share (`mutants.drawn`), and judged in an
order of chance: when the time is over (`--minutes`), those judged are a sample too. Phases:

1. pytest collects the unit tests of the strata's folders, once, and the functions that imports call
   are noted.
2. A fork runs them all and notes which functions each test calls, and for how long it runs.
3. Each mutant is a fork of its own, as fresh as the first one: it runs the tests that call the
   changed function (of the same folder first, quick ones first) until one fails. A change inside a
   function swaps the code of the function objects that exist. Any other change is put in place of
   the module before the tests are imported, in a process of its own that runs the folder's tests;
   so is one that survived in a function that imports call, for its results may be older than it.
4. Score with its 95 % interval (Wilson), and the survivors: how many tests call the function, and
   the mutant's name alone on the line below, as `mutate.accepted` wants it. A function that no test
   calls has mutants that survive.

A mutant is killed when a test fails or its time on the CPU is over (an endless loop). Survivors
that `mutate.accepted` names with a reason (no input tells them from the original) do not count; a
name there that no mutant has any more is an error (`--check-accepted`, part of `make lint`).
Says every half minute on standard error how far it is. Ends with 1 when nothing was judged, or the
lower end of the interval is below `--floor`.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import random
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mutation_score as score
import pytest
from child_process import limit, limit_cpu, silence
from live_functions import Calls, Functions, codes_of, live_caches, live_functions
from mutants import Mutant, drawn, mutants, mutated

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("placement", "ratio", "forwarding", "groups", "topology")
MOST_TESTS = 400
"""Tests run against one mutant; the quickest of those that call its function."""


@dataclass(frozen=True)
class Plan:
    """What is mutated and what runs: paths below `root`."""

    root: Path
    sources: tuple[str, ...]
    tests: tuple[str, ...]
    cpu_seconds: int = 20
    """More than this, and ten times as much as the tests took unchanged, is an endless loop."""

    def files(self) -> list[str]:
        """Modules, by path."""
        found = (p for folder in self.sources for p in (self.root / folder).rglob("*.py"))
        return sorted(str(p.relative_to(self.root)) for p in found)

    def home(self, path: str) -> str:
        """The folder of tests that belongs to a module."""
        return next(
            t for s, t in zip(self.sources, self.tests, strict=True) if path.startswith(f"{s}/")
        )


class Runner:
    """A pytest plugin that runs mutants instead of tests."""

    def __init__(self, plan: Plan, chosen: Sequence[Mutant], jobs: int) -> None:
        self.plan, self.chosen, self.jobs = plan, chosen, jobs
        self.progress = score.Progress(len(chosen))
        self.before = 0.0
        """Seconds on the CPU before the first mutant."""
        self.tally: dict[str, score.Tally] = {source: score.Tally() for source in plan.sources}
        self.sources = {path: (plan.root / path).read_text() for path in plan.files()}
        self.noted = Calls(plan.root, self.sources)
        self.imported: set[str] = set()
        """Functions that ran before any test did."""
        self.functions: Functions = {}
        self.caches: list[Any] = []
        self.calls: dict[str, list[str]] = {}
        self.seconds: dict[str, float] = {}
        self.items: dict[str, pytest.Item] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Phases 2 and 3."""
        self.imported = self.noted.stop()
        self.items = {item.nodeid: item for item in session.items}
        plugins = session.config.pluginmanager
        plugins.unregister(plugins.getplugin("terminalreporter"))
        self.functions, self.caches = live_functions(), live_caches()
        gc.freeze()  # what stands now is never looked at again, so that forks share its memory
        self.progress.trace(len(self.items))
        self._trace()
        self.before = score.on_cpu()
        self.progress.begin()
        running: dict[int, tuple[Mutant, int]] = {}
        for mutant in self.chosen:
            if len(running) >= self.jobs:
                self._reap(running)
            if time.monotonic() >= self.progress.ends:
                break
            ids = self._matter(mutant)
            pid = os.fork()
            if not pid:
                os._exit(self._judge(mutant, ids))
            running[pid] = (mutant, len(ids))
        while running:
            self._reap(running)
        return True

    def _reap(self, running: dict[int, tuple[Mutant, int]]) -> None:
        pid, status = os.wait()
        if pid not in running:
            return
        mutant, ran = running.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        tally = self.tally[next(s for s in self.plan.sources if mutant.path.startswith(f"{s}/"))]
        if code == score.UNFIT:
            tally.unfit += 1
        elif code != score.SURVIVED:
            tally.killed += 1
        else:
            tally.survived.append(mutant)
        self.progress.judged(mutant, code, ran)

    def _matter(self, mutant: Mutant) -> list[str]:
        """Tests that call the function, those of its folder first, then the quickest."""
        if not mutant.function:
            return []
        home = self.plan.home(mutant.path)
        key = f"{mutant.path}:{mutant.function}"
        ids = [test for test, called in self.calls.items() if key in called]
        ids.sort(key=lambda t: (not t.startswith(f"{home}/"), self.seconds.get(t, 0.0), t))
        return ids[:MOST_TESTS]

    def _judge(self, mutant: Mutant, ids: list[str]) -> int:
        """In a fork: what becomes of the mutant."""
        silence()
        if not mutant.function:
            return self._afresh(mutant)
        early = f"{mutant.path}:{mutant.function}" in self.imported
        if not ids:
            return self._afresh(mutant) if early else score.SURVIVED
        code = compile(mutated(self.sources[mutant.path], mutant), self._file(mutant), "exec")
        if not self._swap(self._file(mutant), mutant.function, code):
            return score.UNFIT
        limit(self._allowed(ids))
        if _fails([self.items[i] for i in ids], lambda test: limit_cpu(self._allowed([test]))):
            return score.KILLED
        return self._afresh(mutant) if early else score.SURVIVED

    def _allowed(self, ids: Iterable[str]) -> int:
        """Seconds on the CPU after which these tests are in an endless loop."""
        usual = sum(self.seconds.get(test, 0.0) for test in ids)
        return math.ceil(max(self.plan.cpu_seconds, 10 * usual))

    def _afresh(self, mutant: Mutant) -> int:
        """A change outside functions: in a new process, which imports the changed module."""
        home = self.plan.home(mutant.path)
        seconds = self._allowed(t for t in self.items if t.startswith(f"{home}/"))
        command = [sys.executable, __file__, "--run-one", json.dumps(_plain(mutant))]
        command += ["--root", str(self.plan.root), "--cpu-seconds", str(seconds)]
        for source, tests in zip(self.plan.sources, self.plan.tests, strict=True):
            command += ["--pair", source, tests]
        nowhere = subprocess.DEVNULL
        return subprocess.run(command, check=False, stdout=nowhere, stderr=nowhere).returncode

    def _file(self, mutant: Mutant) -> str:
        return str(self.plan.root / mutant.path)

    def _trace(self) -> None:
        """Phase 2, in a fork: it must leave no trace in what the others start from."""
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reader)
            silence()
            with os.fdopen(writer, "w") as out:
                json.dump(self._traced(), out)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as answer:
            text = answer.read()
        os.waitpid(pid, 0)
        found = json.loads(text or '{"failed": ["the tests ended this process"]}')
        if found["failed"]:
            raise SystemExit(f"tests fail without any change: {found['failed'][:5]}")
        self.calls, self.seconds = found["calls"], found["seconds"]

    def _traced(self) -> dict[str, Any]:
        calls, seconds, failed = {}, {}, []
        for test, item in self.items.items():
            self._forget()
            began = time.process_time()
            self.noted.start()
            bad = _fails([item])
            calls[test] = sorted(self.noted.stop())
            seconds[test] = time.process_time() - began
            if bad:
                failed.append(test)
        return {"calls": calls, "seconds": seconds, "failed": failed}

    def _swap(self, file: str, function: str, module: types.CodeType) -> bool:
        """Give the function objects of that name the code of the changed one; False: cannot be."""
        new = next((c for c in codes_of(module) if c.co_qualname == function), None)
        old = self.functions.get((file, function)) or live_functions().get((file, function), [])
        if new is None or any(len(o.__code__.co_freevars) != len(new.co_freevars) for o in old):
            return False
        for one in old:
            one.__code__ = new
        self._forget()
        return bool(old)

    def _forget(self) -> None:
        """Let each test call what an earlier one, or an import, has had cached."""
        for cache in self.caches:
            cache.cache_clear()


class _Failures:
    def __init__(self) -> None:
        self.any = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what failed, fixtures included."""
        self.any = self.any or report.failed


def _fails(items: Sequence[pytest.Item], before: Callable[[str], None] | None = None) -> bool:
    """Whether one of the tests fails; stops at the first that does.

    `before` is called with the id of each test that is about to run.
    """
    hooks, seen = items[0].config.hook, _Failures()
    items[0].config.pluginmanager.register(seen)
    for item, following in zip(items, [*items[1:], None], strict=True):
        if before is not None:
            before(item.nodeid)
        hooks.pytest_runtest_protocol(item=item, nextitem=following)
        if seen.any:
            break
    items[0].config.pluginmanager.unregister(seen)
    return seen.any


def _arguments(plan: Plan, tests: Sequence[str]) -> list[str]:
    """Quiet, without what would make two runs differ."""
    return [
        *(str(plan.root / t) for t in tests), "-q", "-p", "no:cacheprovider", "-p", "no:xdist",
        "-s", "--rootdir", str(plan.root), "-o", "timeout=0",
    ]  # fmt: skip


def _quiet_hypothesis() -> None:
    """The same examples each time, none kept, and no search for a smaller one that fails."""
    from hypothesis import HealthCheck, Phase, settings

    settings.register_profile(
        "mutate", derandomize=True, database=None, deadline=None,
        phases=(Phase.explicit, Phase.generate), suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    settings.load_profile("mutate")


class _Finder:
    """Loads one module from a changed tree."""

    def __init__(self, file: Path, tree: Any) -> None:
        self.file, self.tree = file, tree

    def install(self) -> None:
        """Change how this file becomes code, under every name it is imported by."""
        from importlib.machinery import SourceFileLoader

        usual, file, tree = SourceFileLoader.get_code, str(self.file), self.tree

        def get_code(loader: SourceFileLoader, fullname: str) -> Any:
            if loader.path == file:
                return compile(tree, file, "exec")
            return usual(loader, fullname)

        # mypy asks that methods stay as they are; this process lives for one changed module.
        SourceFileLoader.get_code = get_code  # type: ignore[method-assign, assignment]  # as above


def run_one(plan: Plan, mutant: Mutant) -> int:
    """Phase 3 for what is afresh: pytest from the start, on the module's folder."""
    source = (plan.root / mutant.path).read_text()
    _Finder(plan.root / mutant.path, mutated(source, mutant)).install()
    _quiet_hypothesis()
    limit(plan.cpu_seconds + 30)
    tests = [plan.home(mutant.path)]
    ended = pytest.main([*_arguments(plan, tests), "-x"])
    return score.SURVIVED if ended in (0, 5) else score.KILLED


def _plain(mutant: Mutant) -> dict[str, Any]:
    return {name: getattr(mutant, name) for name in Mutant.__slots__}


def every(plan: Plan) -> dict[str, list[Mutant]]:
    """All mutants of the sources, by module."""
    return {path: mutants(path, (plan.root / path).read_text()) for path in plan.files()}


def choose(
    by_path: dict[str, list[Mutant]], count: int, seed: int, known: dict[str, str]
) -> tuple[list[Mutant], int]:
    """The sample without accepted ones, in an order of chance, and how many those were."""
    sample = drawn(by_path, count, seed)
    chosen = [m for m in sample if m.name not in known]
    random.Random(seed).shuffle(chosen)
    return chosen, len(sample) - len(chosen)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--minutes", type=float, default=60, help="end with what was judged by then"
    )
    parser.add_argument("--only", choices=FOLDERS, action="append")
    parser.add_argument("--floor", type=float, default=0.8, help="least lower end of the interval")
    parser.add_argument("--cpu-seconds", type=int, default=Plan.cpu_seconds)
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--pair", nargs=2, action="append", metavar=("SOURCES", "TESTS"))
    parser.add_argument(
        "--check-accepted", action="store_true", help=f"only read {score.ACCEPTED.name}"
    )
    parser.add_argument("--run-one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    pairs = args.pair or [
        (f"operator/pdserve/{f}", f"tests/unit/{f}") for f in args.only or FOLDERS
    ]
    plan = Plan(args.root, tuple(p[0] for p in pairs), tuple(p[1] for p in pairs), args.cpu_seconds)
    if args.run_one:
        return run_one(plan, Mutant(**json.loads(args.run_one)))
    known, by_path = score.accepted(score.ACCEPTED.read_text()), every(plan)
    if args.check_accepted:
        gone = score.stale(by_path, known)
        for name in gone:
            print(f"{score.ACCEPTED.name}: no mutant has this name: {name}")
        return int(bool(gone))
    chosen, passed = choose(by_path, args.mutants, args.seed, known)
    print(f"seed {args.seed}: {len(chosen)} mutants of {', '.join(plan.sources)}", flush=True)
    _quiet_hypothesis()
    runner = Runner(plan, chosen, args.jobs)
    began = time.monotonic()
    runner.progress.ends = began + 60 * args.minutes
    runner.noted.start()
    ended = pytest.main(_arguments(plan, plan.tests), plugins=[runner])
    low = score.report(runner.tally, passed, args.floor, time.monotonic() - began)
    if judged := sum(t.judged for t in runner.tally.values()):
        print(score.duration(runner.before, score.on_cpu(), judged))
    return int(ended) or low


if __name__ == "__main__":
    sys.exit(main())
