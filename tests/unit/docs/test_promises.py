"""docs/promises.md: every promise names tests that exist, and every invariant is promised."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "promises.md").read_text()
ROWS = re.findall(r"^\| (?!no\.|promise|---)(.*) \|$", PAGE, re.M)
NAMED = sorted(set(re.findall(r"`(tests/[\w/.]+)::(\w+)`", PAGE)))


def test_every_promise_has_a_test() -> None:
    assert len(ROWS) > 20
    assert [row for row in ROWS if "::test_" not in row.rpartition("|")[2]] == []


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[f"{p}::{n}" for p, n in NAMED])
def test_the_test_exists(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, functions)}


def test_every_invariant_of_the_architecture_is_promised() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.partition("## Invariants")[2].partition("\n## ")[0]
    numbers = re.findall(r"^(\d+)\. ", section, re.M)
    assert numbers == [str(n) for n in range(1, len(numbers) + 1)]
    assert re.findall(r"^\| (\d+) \|", PAGE, re.M) == numbers


def test_the_policy_leads_to_the_threat_model_and_back() -> None:
    assert "docs/security.md" in (ROOT / "SECURITY.md").read_text()
    page = (ROOT / "docs" / "security.md").read_text()
    for part in ("Who may do what", "What is trusted", "The admission policy"):
        assert f"## {part}" in page
    assert "(../SECURITY.md)" in page
