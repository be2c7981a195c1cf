"""`make lint` refuses a public class whose name another module uses already."""

from __future__ import annotations

from pathlib import Path

import pytest
from hack import check_names

ROOT = Path(__file__).parents[3]

CASES: tuple[tuple[str, dict[str, str], dict[str, list[str]]], ...] = (
    ("one each", {"a.py": "class A: ...", "b.py": "class B: ..."}, {}),
    ("twice", {"a.py": "class A: ...", "b.py": "\nclass A: ..."}, {"A": ["a.py:1", "b.py:2"]}),
    ("twice in a module", {"a.py": "class A: ...\nclass A: ..."}, {"A": ["a.py:1", "a.py:2"]}),
    ("private", {"a.py": "class _A: ...", "b.py": "class _A: ..."}, {}),
    (
        "inner classes are named by their owners",
        {"a.py": "class A:\n    class C: ...", "b.py": "class B:\n    class C: ..."},
        {},
    ),
    (
        "decorated",
        {"a.py": "@d\nclass A: ...", "b.py": "class A: ..."},
        {"A": ["a.py:2", "b.py:1"]},
    ),
)


@pytest.mark.parametrize(("case", "files", "want"), CASES, ids=[c[0] for c in CASES])
def test_shared_names(case: str, files: dict[str, str], want: dict[str, list[str]]) -> None:
    assert check_names.shared_names(files.items()) == want, case


def test_the_exit_code_and_the_message_name_the_places(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.py").write_text("class Claim: ...\n")
    assert check_names.main([str(tmp_path)]) == 0
    (tmp_path / "inner" / "b.py").write_text("x = 1\nclass Claim: ...\n")
    assert check_names.main([str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert f"class Claim stands 2 times: {tmp_path}/a.py:1, {tmp_path}/inner/b.py:2" in told


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["/nonexistent"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert check_names.main(arguments) == 2
    assert "usage" in capsys.readouterr().err


def test_this_source_gives_each_public_class_its_own_name() -> None:
    assert check_names.main([str(ROOT / "operator")]) == 0
