"""`make lint` refuses long modules and functions, untyped values and unexplained exceptions."""

from __future__ import annotations

from pathlib import Path

import pytest
from hack import check_sizes


def function(lines: int, head: str = "def f() -> None:") -> str:
    return f"{head}\n" + "    x = 1\n" * (lines - head.count("\n") - 1)


ANY = "x: Any\n"
CASES: list[tuple[str, dict[str, str], list[str]]] = [
    ("as long as may be", {"operator/a.py": "x = 1\n" * 400, "hack/b.py": function(60)}, []),
    (
        "a long module",
        {"operator/a.py": "x = 1\n" * 401},
        ["operator/a.py: 401 lines, at most 400"],
    ),
    (
        "a long function",
        {"hack/a.py": function(61)},
        ["hack/a.py:1: f has 61 lines, at most 60"],
    ),
    (
        "its decorator counts, and an inner one does",
        {"operator/a.py": "class A:\n    @d\n    async def g(self):\n" + "        x = 1\n" * 59},
        ["operator/a.py:2: g has 61 lines, at most 60"],
    ),
    (
        "untyped",
        {"operator/pdserve/a.py": ANY * 81},
        ["81 lines of operator use Any, at most 80"],
    ),
    ("untyped a little", {"operator/a.py": "from a import Any\n" + ANY * 80, "hack/b.py": ANY}, []),
    (
        "an error that is not looked at, without a word",
        {"benchmarks/a.py": "x = 1\nx = f()  # type: ignore[misc]\n"},
        ["benchmarks/a.py:2: type: ignore without its reason"],
    ),
    (
        "with one",
        {"hack/a.py": "# Why.\nf()  # type: ignore[a]\ng()  # type: ignore[a, b]  # why\n"},
        [],
    ),
]


@pytest.mark.parametrize(("case", "sources", "want"), CASES, ids=[c[0] for c in CASES])
def test_what_is_too_big_or_not_explained_is_found(
    case: str, sources: dict[str, str], want: list[str]
) -> None:
    found, _ = check_sizes.findings(sources)
    assert [line for line in found if not line.startswith("one function of ten")] == want, case


@pytest.mark.parametrize(
    ("long", "want"),
    [(1, []), (2, ["one function of ten is above 25 lines: nine of ten have up to 26"])],
)
def test_one_function_of_ten_may_be_long(long: int, want: list[str]) -> None:
    source = function(5) * (10 - long) + function(26) * long
    assert check_sizes.findings({"operator/a.py": source})[0] == want


def test_the_exit_code_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "operator").mkdir()
    (tmp_path / "operator" / "a.py").write_text("x = 1\n" * 300)
    assert check_sizes.main([str(tmp_path)]) == 0
    assert "longest module 300 lines" in capsys.readouterr().out
    (tmp_path / "operator" / "a.py").write_text("x = 1\n" * 500)
    assert check_sizes.main([str(tmp_path)]) == 1
    assert "operator/a.py: 500 lines, at most 400" in capsys.readouterr().out
