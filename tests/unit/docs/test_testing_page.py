"""docs/testing.md names what CI runs, and commands that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "testing.md").read_text()
SCRIPT = (ROOT / ".ci" / "run").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_steps_of_ci_are_those_of_the_page() -> None:
    run = re.findall(r"^\s*make ([\w-]+)", SCRIPT, re.MULTILINE)
    listed = re.findall(r"^\| `make ([\w-]+)` \|", section("What CI runs: `.ci/run`"), re.MULTILINE)
    assert listed == run
    assert {"lint", "test", "e2e"} <= set(run)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make ([\w-]+)", PAGE))))
def test_every_command_of_the_page_exists(target: str) -> None:
    bench = ROOT / "benchmarks" / f"{target.removeprefix('bench-')}.py"
    known = re.search(rf"^{re.escape(target)}:", MAKEFILE, re.MULTILINE)
    assert known or target == "bench-NAME" or (target.startswith("bench-") and bench.is_file())


@pytest.mark.parametrize(
    ("short", "test"),
    [
        ("500 odd inputs", "tests/unit/fuzz/test_parsers.py"),
        ("60 schedules (20,000 to", "tests/unit/dst/test_schedules.py"),
    ],
)
def test_the_short_forms_are_as_long_as_the_page_says(short: str, test: str) -> None:
    numbers = [number.replace(",", "") for number in re.findall(r"[\d,]*\d", short)]
    source = (ROOT / test).read_text().replace("_", "")
    assert short in PAGE
    assert all(re.search(rf"\b{number}\b", source) for number in numbers)
