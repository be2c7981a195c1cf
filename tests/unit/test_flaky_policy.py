"""What a run does with tests that fail once: see tests/support/flaky.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, dict[str, dict[str, object]]]]
ROOT = Path(__file__).parents[2]
GOOD = "def test_good(): pass\n"
ONCE = """
from pathlib import Path
def test_{name}():
    mark = Path(__file__).with_name("{name}.failed")
    if not mark.exists():
        mark.touch()
        raise AssertionError("first try of {name}")
"""
ALWAYS = "def test_always(): raise AssertionError('always')\n"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a project of such files under the policy: (exit status, output, report)."""

    def run(files: dict[str, str], *options: str) -> tuple[int, str, dict[str, dict[str, object]]]:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        plugins = "-p tests.support.flaky -p tests.support.report --import-mode=importlib"
        (tmp_path / "pytest.ini").write_text(f"[pytest]\naddopts = {plugins}\n")
        command = [sys.executable, "-m", "pytest", "--report", "r.json", *options, "tests"]
        env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        done = subprocess.run(
            command, cwd=tmp_path, env=env | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (tmp_path / "r.json").exists(), done.stdout + done.stderr
        report = json.loads((tmp_path / "r.json").read_text())["scenarios"]
        return done.returncode, done.stdout, {entry["name"]: entry for entry in report}

    return run


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "two workers"])
def test_one_flaky_test_is_named_and_passes(run: Run, workers: tuple[str, ...]) -> None:
    files = {
        "tests/cluster/test_a.py": GOOD + ONCE.format(name="once"),
        "tests/unit/test_u.py": GOOD,
    }
    status, output, report = run(files, *workers)
    assert status == 0, output
    assert "flaky: tests/cluster/test_a.py::test_once" in output
    assert "first try of once" in output
    assert "2 passed, 1 flaky in" in output.splitlines()[-1]
    assert report["a: once"]["ok"] is True and report["a: once"]["flaky"] is True
    assert "flaky" not in report["a: good"]


def test_two_flaky_tests_fail_the_run(run: Run) -> None:
    files = {f"tests/api/test_{n}.py": ONCE.format(name=n) for n in ("one", "two")}
    status, output, _ = run(files)
    assert status == 1
    assert "flaky: 2" in output
    assert "more than 1 flaky test" in output


@pytest.mark.parametrize(
    ("files", "again"),
    [
        ({"tests/cluster/test_a.py": ALWAYS}, True),
        ({"tests/cluster/test_a.py": ONCE.format(name="x") + ALWAYS}, True),
        ({"tests/unit/test_a.py": ONCE.format(name="x")}, False),
        ({"tests/unit/test_a.py": ALWAYS, "tests/api/test_b.py": ONCE.format(name="x")}, False),
        ({f"tests/api/test_{n}.py": ONCE.format(name=f"n{n}") for n in range(4)}, False),
    ],
    ids=["always", "one of two", "a unit test", "beside a unit test", "too many"],
)
def test_a_failure_stays_one(run: Run, files: dict[str, str], again: bool) -> None:
    status, output, _ = run(files)
    assert status == 1
    assert ("once more, alone" in output) is again


def test_no_second_chance_when_told(run: Run) -> None:
    files = {"tests/cluster/test_a.py": ONCE.format(name="x")}
    status, output, _ = run(files, "--no-second-chance")
    assert status == 1
    assert "once more, alone" not in output
