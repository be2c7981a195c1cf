"""A test run that is asked to end cleans up what its fixtures made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HELD = """
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def made():
    (HERE / "made").touch()
    yield
    (HERE / "made").unlink()


def test_takes_long(made):
    (HERE / "says").open("w").write("up")
    time.sleep(1000)
"""


def test_sigterm_runs_the_teardown_of_fixtures(tmp_path: Path) -> None:
    (tmp_path / "test_held.py").write_text(HELD)
    os.mkfifo(tmp_path / "says")
    argv = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-q", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", "--rootdir", str(tmp_path), *argv],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},
    ) as run:
        assert (tmp_path / "says").read_text() == "up"
        assert (tmp_path / "made").exists()
        run.terminate()
        said, _ = run.communicate(timeout=60)
    assert run.returncode == 143
    assert "ended by SIGTERM" in said
    assert not (tmp_path / "made").exists()
