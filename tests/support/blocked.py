"""A shared fixture that fails is one error; tests that only lack it are counted as *blocked*.

Without this, pytest repeats the failure of a session's fixture for every test that wants it. The
first of them is an error with all there is to say. The others fail too, so the run does, but each
is one word of progress, and the summary has one line for all that lack the same fixture.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest

LACKS = "lacks_fixture"
"""Attribute of a report: the shared fixture whose failure ended the test's set-up, or None."""


def pytest_configure(config: pytest.Config) -> None:
    """One memory per process; that of a run with workers is where reports come together."""
    config.pluginmanager.register(Blocked(), "pdserve-blocked")


class Blocked:
    """Remembers which shared fixtures failed, and of which test the error is shown."""

    def __init__(self) -> None:
        self._failures: list[tuple[BaseException, str]] = []
        self._names: Counter[str] = Counter()
        self._shown: dict[str, str] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any]
    ) -> Generator[None, object, object]:
        """Remember a failure, unless it is that of a fixture below."""
        try:
            return (yield)
        except (Exception, pytest.fail.Exception) as error:
            if fixturedef.scope != "function" and self._fixture(error) is None:
                self._failures.append((error, self._label(fixturedef.argname)))
            raise

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Name in the report the shared fixture that failed."""
        report = yield
        if report.failed and call.when == "setup" and call.excinfo is not None:
            setattr(report, LACKS, self._fixture(call.excinfo.value))
        return report

    def _fixture(self, error: BaseException) -> str | None:
        return next((name for known, name in self._failures if known is error), None)

    def _label(self, name: str) -> str:
        """Another one for each failure: of a parameter, of a module's own, of a worker's."""
        self._names[name] += 1
        worker = os.environ.get("PYTEST_XDIST_WORKER", "")
        count = self._names[name]
        return " ".join([name, *([worker] if worker else []), *([f"({count})"] * (count > 1))])

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Of all tests that lack a fixture, the first is an error."""
        fixture = getattr(report, LACKS, None)
        if fixture is None or self._shown.setdefault(fixture, report.nodeid) == report.nodeid:
            return None
        return "blocked", "b", "BLOCKED"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """One line per fixture that tests lacked."""
        reports = terminalreporter.stats.get("blocked", [])
        for fixture, count in Counter(getattr(report, LACKS) for report in reports).items():
            first = self._shown[fixture]
            terminalreporter.line(f"blocked: {count} more lack fixture {fixture}: see {first}")
