"""Names in docs and docstrings that name nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "hack"))

from references import Known, complaints, findings, known, spare  # noqa: E402

FILES = {
    "Makefile": "unit: x ## tests\n\tpytest\n",
    "docs/page.md": "# Page\n",
    "benchmarks/speed.py": "",
    "operator/pdserve/__init__.py": "",
    "operator/pdserve/cli.py": 'commands.add_parser("demo")\n',
    "operator/pdserve/wire/__init__.py": "",
    "operator/pdserve/wire/names.py": "class Port:\n    first: int\n\ndef slot_name(): ...\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


RIGHT = [
    "see docs/page.md and `page.md`, `names.py`, `wire/names.py`",
    "`wire.names` has `wire.names.slot_name` and `names.Port.first`",
    "`slot_name` gives `add_parser`",
    "`pdserve demo`, `make unit`, `make bench-speed`, the demo command",
    "`spec.replicas` is a path, `some.other.thing` too; build/x.json is written",
]
WRONG = [
    ("see docs/gone.md", "docs/gone.md"),
    ("weights: `weights.py`", "weights.py"),
    ("`wire.names.Gone` says it", "wire.names.Gone"),
    ("`pdserve.gone` says it", "pdserve.gone"),
    ("`gone_view` reads the same", "gone_view"),
    ("run `pdserve gone`", "pdserve gone"),
    ("run `make gone`", "make gone"),
    ("the preview command calls it", "preview command"),
]


@pytest.mark.parametrize("text", RIGHT)
def test_what_exists_is_found(tree: Path, text: str) -> None:
    assert _found(tree, text) == []


@pytest.mark.parametrize(("text", "word"), WRONG, ids=[w[1] for w in WRONG])
@pytest.mark.parametrize("form", ['"""{}."""', "x = 1  # {}", 'class A:\n    b: int\n    """{}"""'])
def test_what_does_not_exist_is_reported(tree: Path, text: str, word: str, form: str) -> None:
    assert _found(tree, form.format(text), "operator/pdserve/more.py") == [word]


@pytest.mark.parametrize(
    ("page", "want"),
    [
        ("see [it](gone.md)", ["gone.md"]),
        ("```\n.venv/bin/pdserve gone\nmake unit\n```", ["pdserve gone"]),
        ("```\nhelm install pdserve charts/pdserve\n```", []),
        ("pdserve runs it, and one may make haste", []),
        ("`some_field` of an object", []),
    ],
)
def test_pages_are_read_with_their_code(tree: Path, page: str, want: list[str]) -> None:
    assert _found(tree, page) == want


def test_the_allow_list_gives_reasons() -> None:
    found = [("a.py:1", "gone.md"), ("a.py:2", "other.md")]
    allow = {"gone.md": "a host", "old.md": "was there", "other.md": ""}
    assert complaints(found, allow) == ["references.allow: other.md: no reason"]
    assert spare(found, allow) == ["old.md"]
    assert complaints(found[:1], {}) == ["a.py:1: 'gone.md' names nothing that exists"]


def _found(tree: Path, text: str, file: str = "docs/new.md") -> list[str]:
    (tree / file).write_text(text)
    there: Known = known(tree)
    return [word for where, word in findings(tree, there) if where.startswith(file)]
