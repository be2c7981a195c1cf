"""The compiled request path: the modules it names are there, and it behaves as the sources do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hack import compile as compiling
from hack.images import install

ROOT = Path(__file__).resolve().parents[3]
SAME = ("tests/unit/gateway/test_killed_engines.py", "tests/unit/http1", "tests/unit/forwarding")
"""Tests of the request path that compiled code has to pass too."""


def test_what_stays_interpreted_is_there() -> None:
    for name in compiling.INTERPRETED:
        assert (compiling.SOURCES / "pdserve" / name).is_file()


def test_everything_that_is_compiled_is_in_the_gateways_image() -> None:
    parts = set(install.PARTS["gateway"])
    assert parts.issuperset(compiling.COMPILED)


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "install gcc" in compiling.cannot()


@pytest.mark.skipif(bool(compiling.cannot()), reason="no C compiler, or no Python.h")
def test_compiled_code_passes_the_tests_of_its_sources(tmp_path: Path) -> None:
    made = ROOT / "build" / "compiled"
    program = [sys.executable, "-c", "import pdserve.http1.client as m; print(m.__file__)"]
    compiled = {**os.environ, "PYTHONPATH": str(made), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, ROOT / "hack" / "compile.py", made, "--optimize", "0"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = subprocess.run(program, env=compiled, capture_output=True, text=True, check=True)
    assert found.stdout.strip().endswith(".so")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SAME],
        cwd=ROOT, env={**compiled, "PYTHONSAFEPATH": ""}, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
