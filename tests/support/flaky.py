"""A test of real processes that fails is run once more, alone; the run says which were flaky.

Tests in `LAYERS` share two cores with other processes, so a failure may be the machine's. Once all
other tests have ended, each failed one runs again in a pytest of its own. One that passes then is
*flaky*: the closing line counts it, the summary names it with its first failure, and the exit
status is zero as long as there are at most `ALLOWED` of them. A unit test has no second chance:
when one fails, nothing is run again.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

LAYERS = ("tests/api/", "tests/cluster/", "tests/e2e/")
"""Where a test depends on processes that share the machine."""
ALLOWED = 1
"""Flaky tests that a successful run may have."""
WORTH_A_TRY = 3
"""More failures than this are a fault, not chance: nothing is run again."""
LIMIT = 900.0
"""Seconds that one repetition may take, its cluster included."""

FLAKY: pytest.StashKey[list[str]] = pytest.StashKey()
"""Node ids that failed first and passed alone."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option."""
    parser.getgroup("pdserve").addoption(
        "--no-second-chance", action="store_true", help="do not run a failed test again, alone"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Only where reports of all tests come together."""
    config.stash[FLAKY] = []
    once = config.getoption("--no-second-chance") or config.getoption("maxfail", 0)
    if not once and not hasattr(config, "workerinput"):
        config.pluginmanager.register(SecondChance(config), "pdserve-second-chance")


class SecondChance:
    """Collects failures; repeats them at the end of the session."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._failed: dict[str, None] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember a failure of any phase."""
        if report.failed:
            self._failed[report.nodeid] = None

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Repeat what failed, once workers and shared clusters have ended."""
        failed = list(self._failed)
        if session.exitstatus != pytest.ExitCode.TESTS_FAILED or not failed:
            return
        if len(failed) > WORTH_A_TRY or not all(name.startswith(LAYERS) for name in failed):
            return
        flaky = [name for name in failed if self._passes_alone(name)]
        self._config.stash[FLAKY].extend(flaky)
        if len(flaky) == len(failed) <= ALLOWED:
            session.exitstatus = pytest.ExitCode.OK
        self._count(flaky)

    def _passes_alone(self, name: str) -> bool:
        reporter = self._reporter()
        reporter.ensure_newline()
        reporter.write_line(f"once more, alone: {name}")
        command = [
            sys.executable, "-m", "pytest", "-q", "--no-second-chance", "-p", "no:cacheprovider",
            "--rootdir", str(self._config.rootpath), *self._kept_options(), name,
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, cwd=self._config.rootpath, capture_output=True, text=True,
                check=False, timeout=LIMIT, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            reporter.write_line(f"  not done after {LIMIT:g} s")
            return False
        if done.returncode != 0:
            reporter.write_line(done.stdout[-4000:] + done.stderr[-1000:])
        return done.returncode == 0

    def _kept_options(self) -> list[str]:
        """Options that change what a test needs."""
        nodes = self._config.getoption("--nodes", None)
        return ["--nodes", nodes] if nodes else []

    def _count(self, flaky: list[str]) -> None:
        """Failures that became flaky leave the counts of failures, errors and blocked tests."""
        stats = self._reporter().stats
        for kind in ("failed", "error", "blocked"):
            moved = [r for r in stats.get(kind, []) if r.nodeid in flaky]
            stats[kind] = [r for r in stats.get(kind, []) if r.nodeid not in flaky]
            stats.setdefault("flaky", []).extend(moved)
        first = {r.nodeid: r for r in reversed(stats["flaky"])}
        stats["flaky"] = list(first.values())
        if not stats["flaky"]:
            del stats["flaky"]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Names, and how each failed first."""
        flaky = self._config.stash[FLAKY]
        if not flaky:
            return
        terminalreporter.section(f"flaky: {len(flaky)} (failed, then passed alone)")
        for report in terminalreporter.stats.get("flaky", []):
            terminalreporter.line(f"flaky: {report.nodeid}")
            terminalreporter.line(str(report.longreprtext)[-4000:])
        if len(flaky) > ALLOWED:
            terminalreporter.line(f"more than {ALLOWED} flaky test in one run: the run fails")

    def _reporter(self) -> Any:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        assert reporter is not None
        return reporter
