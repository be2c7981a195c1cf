"""What a run says of a shared fixture that fails: see tests/support/blocked.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFTEST = """
import pytest
@pytest.fixture(scope="session")
def cluster():
    {failure}
@pytest.fixture(scope="session")
def installed(cluster):
    return cluster
@pytest.fixture(scope="module", params=[1, 2])
def numbered(request):
    raise RuntimeError(f"number {{request.param}}")
@pytest.fixture
def own():
    raise RuntimeError("own")
"""
TESTS = """
import pytest
@pytest.mark.parametrize("n", range(40))
def test_installed(installed, n): pass
@pytest.mark.parametrize("n", range(52))
def test_cluster(cluster, n): pass
def test_good(): pass
"""


def run(folder: Path, tests: str, failure: str, *options: str) -> tuple[int, str]:
    plugins = "-p tests.support.blocked -p tests.support.flaky -p tests.support.report"
    (folder / "pytest.ini").write_text(f"[pytest]\naddopts = {plugins}\n")
    (folder / "tests" / "e2e").mkdir(parents=True)
    (folder / "conftest.py").write_text(CONFTEST.format(failure=failure))
    (folder / "tests" / "e2e" / "test_it.py").write_text(tests)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "tests"], cwd=folder,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    "failure",
    ["raise RuntimeError('no engine')", "pytest.fail('no engine')", "assert 0, 'no engine'"],
)
def test_a_failed_fixture_is_reported_once(tmp_path: Path, failure: str) -> None:
    status, said = run(tmp_path, TESTS, failure, "--report", "r.json", "-ra")
    assert status == 1
    assert "1 passed, 1 error, 91 blocked in" in said.splitlines()[-1]
    assert said.count("____ ERROR at setup of ") == 1
    assert [line for line in said.splitlines() if line.startswith("blocked: ")] == [
        "blocked: 91 more lack fixture cluster: see tests/e2e/test_it.py::test_installed[0]"
    ]
    assert "once more, alone" not in said
    report = json.loads((tmp_path / "r.json").read_text())["scenarios"]
    assert [e["ok"] for e in report].count(True) == 1
    assert [e.get("lacks") for e in report].count("cluster") == 92


def test_each_worker_reports_its_own(tmp_path: Path) -> None:
    status, said = run(tmp_path, TESTS, "raise RuntimeError('no engine')", "-n", "2")
    assert status == 1
    assert said.count("____ ERROR at setup of ") == 2
    assert "90 blocked" in said.splitlines()[-1]
    assert "lack fixture cluster gw0: see " in said
    assert "lack fixture cluster gw1: see " in said


def test_failures_that_differ_are_all_told(tmp_path: Path) -> None:
    tests = """
def test_a(numbered): pass
def test_b(numbered): pass
def test_c(own): pass
def test_d(own): pass
"""
    status, said = run(tmp_path, tests, "return 1", "--no-second-chance")
    assert status == 1
    assert "4 errors, 2 blocked in" in said.splitlines()[-1]
    assert "number 1" in said and "number 2" in said
    assert said.count("E       RuntimeError: own") == 2


def test_a_fixture_that_skips_blocks_nothing(tmp_path: Path) -> None:
    status, said = run(tmp_path, TESTS, "pytest.skip('no engine here')")
    assert status == 0
    assert "1 passed, 92 skipped in" in said.splitlines()[-1]


def test_few_tests_of_a_fixture_that_fails_once_have_their_second_chance(tmp_path: Path) -> None:
    tests = "def test_a(cluster): pass\ndef test_b(cluster): pass\n"
    failure = """
    from pathlib import Path
    mark = Path(__file__).with_name("failed")
    if not mark.exists():
        mark.touch()
        raise RuntimeError("first try")"""
    status, said = run(tmp_path, tests, failure)
    assert status == 1, "two flaky tests are more than a run may have"
    assert "flaky: 2" in said
    assert "2 flaky in" in said.splitlines()[-1]
