"""`--report FILE`: what each test showed, as JSON for scripts and as a table for people.

`{"scenarios": [{"name", "ok", "seconds", "measured"}]}`: one entry per test, `measured` is what
it recorded by `record_property`; a test that could not be tried is not `ok` and has `skipped`, or
`lacks` and the shared fixture that failed; one that failed and then passed alone is `ok` and has
`flaky` (see `flaky`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.blocked import LACKS
from tests.support.flaky import FLAKY


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option."""
    parser.getgroup("pdserve").addoption("--report", metavar="FILE", help="write what was shown")


def pytest_configure(config: pytest.Config) -> None:
    """Collect only when asked, and only where the tests run."""
    if config.getoption("--report") and not hasattr(config, "workerinput"):
        report = Report(Path(config.getoption("--report")), config.stash[FLAKY])
        config.pluginmanager.register(report, "pdserve-report")


class Report:
    """One entry per test, in order."""

    def __init__(self, file: Path, flaky: list[str]) -> None:
        self._file = file
        self._flaky = flaky
        self.scenarios: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add up set-up, call and teardown of a test."""
        entry = self.scenarios.setdefault(
            report.nodeid, {"name": _name(report.nodeid), "ok": False, "seconds": 0.0}
        )
        entry["seconds"] = round(entry["seconds"] + report.duration, 1)
        if report.when == "call":
            entry["ok"] = report.passed
            entry["measured"] = dict(report.user_properties)
        elif report.failed:
            entry["ok"] = False
            if fixture := getattr(report, LACKS, None):
                entry["lacks"] = fixture
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            entry["skipped"] = str(reason).removeprefix("Skipped: ")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Write the file, also after an interrupt."""
        for nodeid in self._flaky:
            self.scenarios[nodeid].update(ok=True, flaky=True)
        entries = [{"measured": {}, **entry} for entry in self.scenarios.values()]
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps({"scenarios": entries}, indent=1) + "\n")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The table."""
        terminalreporter.section("scenarios")
        for entry in self.scenarios.values():
            state = "ok" if entry["ok"] else "skipped" if "skipped" in entry else "FAILED"
            shown = ", ".join(f"{k} {v}" for k, v in entry.get("measured", {}).items())
            line = f"{state:8}{entry['seconds']:7.1f} s  {entry['name']}"
            why = f"lacks {entry['lacks']}" if "lacks" in entry else entry.get("skipped", "")
            terminalreporter.line(f"{line}  {shown or why}".rstrip())
        terminalreporter.line(f"report: {self._file}")


def _name(nodeid: str) -> str:
    """`tests/cluster/test_service_ready.py::test_both[x]` -> `service ready: both [x]`."""
    file, _, test = nodeid.partition("::")
    subject = Path(file).stem.removeprefix("test_").replace("_", " ")
    return f"{subject}: {test.removeprefix('test_').replace('_', ' ').replace('[', ' [')}"
