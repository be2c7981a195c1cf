"""MODEL=... of the Makefile: an unknown name ends it before anything is built or started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PYTHON = """#!/bin/sh
echo "$@" >> {log}
case "$*" in "-m pdserve.models.catalog "*) exec {real} "$@" ;; esac
exit 99
"""


def make(tmp_path: Path, *arguments: str) -> tuple[int, str, list[str]]:
    """Status, standard error, and what `make` ran Python with: only the check runs really."""
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(PYTHON.format(log=log, real=sys.executable))
    python.chmod(0o755)
    fixed = [f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(
        ["make", "--no-print-directory", *fixed, *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stderr, log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize("target", ["demo", "images", "kind"])
@pytest.mark.parametrize("name", ["llama-9", "smollm2", "a b", "; touch here"])
def test_an_unknown_model_ends_it_at_once(target: str, name: str, tmp_path: Path) -> None:
    status, said, ran = make(tmp_path, target, f"MODEL={name}")
    assert status != 0
    assert f"MODEL: no model {name!r}; known are smollm2-135m" in said
    assert ran == [f"-m pdserve.models.catalog {name}"]


@pytest.mark.parametrize("name", ["smollm2-135m", "ORG/llama@main"])
def test_a_name_that_may_be_one_goes_on(name: str, tmp_path: Path) -> None:
    _, said, ran = make(tmp_path, "demo", f"MODEL={name}")
    assert "MODEL:" not in said
    assert ran[0] == f"-m pdserve.models.catalog {name}"
    assert len(ran) > 1


def test_without_a_model_nothing_is_asked(tmp_path: Path) -> None:
    _, _, ran = make(tmp_path, "demo", "MODEL=")
    assert ran
    assert not [line for line in ran if "catalog" in line]
