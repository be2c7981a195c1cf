"""`make lint` refuses a public function that raises what its docstring does not name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hack import check_docstrings

ROOT = Path(__file__).parents[3]
DOC = '"""Do it.\n\n    Raises:\n        {}: it cannot be done.\n    """'


def function(body: str, docstring: str = '"""Do it."""', name: str = "f") -> str:
    return f"def {name}():\n    {docstring}\n" + "".join(f"    {b}\n" for b in body.split("\n"))


def missing(*names: str, function: str = "f", line: int = 1) -> list[str]:
    return [f"a.py:{line}: {function} raises {n}: name it in Raises:" for n in names]


CASES: tuple[tuple[str, str, list[str]], ...] = (
    ("not named", function("raise ValueError('x')"), missing("ValueError")),
    ("named", function("raise ValueError('x')", DOC.format("ValueError")), []),
    ("named with its module", function("raise E", DOC.format("http1.E")), []),
    ("beside another", function("raise E", DOC.format("D, E")), []),
    ("another named", function("raise E", DOC.format("D")), missing("E")),
    ("of a module", function("raise errors.E('x') from None"), missing("E")),
    ("only in prose", function("pass", '"""Do it; raises `KubeError`."""'), missing("KubeError")),
    ("in another section", function("raise E", DOC.format("E").replace("Raises", "Args")),
     missing("E")),
    ("two, in order", function("if a:\n    raise B\nraise A"), missing("A", "B")),
    ("below a match", function("match a:\n    case 1:\n        raise E"), missing("E")),
    ("below a loop's else", function("for a in b:\n    pass\nelse:\n    raise E"), missing("E")),
    ("below with", function("with a:\n    raise E"), missing("E")),
    ("caught", function("try:\n    raise E\nexcept (D, m.E):\n    pass"), []),
    ("another is caught", function("try:\n    raise E\nexcept D:\n    pass"), missing("E")),
    ("raised on", function("try:\n    a()\nexcept D as error:\n    raise E from error"),
     missing("E")),
    ("from the handler of the same", function("try:\n    a()\nexcept E:\n    raise E"),
     missing("E")),
    ("after the try", function("try:\n    a()\nexcept E:\n    pass\nelse:\n    raise E"),
     missing("E")),
    ("a variable, again, an answer", function("raise error\nraise\nraise refusal(1)"), []),
    ("abstract", function("raise NotImplementedError"), []),
    ("private", function("raise E", name="_f"), []),
    ("inside another function", function("def g():\n    raise E"), []),
    ("a method", "class A:\n    async def f(self):\n        raise E\n",
     missing("E", function="A.f", line=2)),
    ("of a private class", "class _A:\n    def f(self):\n        raise E\n", []),
    ("a constructor", 'class A:\n    """It."""\n    def __init__(self):\n        raise E\n',
     missing("E", function="A.__init__", line=3)),
    ("that of the class", f"class A:\n    {DOC.format('E')}\n    def __init__(self):\n"
     "        raise E\n", []),
)  # fmt: skip


@pytest.mark.parametrize(("case", "source", "want"), CASES, ids=[c[0] for c in CASES])
def test_what_a_public_function_raises_is_named(case: str, source: str, want: list[str]) -> None:
    assert check_docstrings.findings("a.py", source) == want, case


def test_the_exit_code_and_the_message_name_the_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.py").write_text(function("pass"))
    assert check_docstrings.main([str(tmp_path)]) == 0
    (tmp_path / "a.py").write_text(function("raise E"))
    assert check_docstrings.main([str(tmp_path)]) == 1
    assert f"{tmp_path}/a.py:1: f raises E: name it in Raises:" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["/nonexistent"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert check_docstrings.main(arguments) == 2
    assert "usage" in capsys.readouterr().err


def test_these_functions_name_what_they_raise() -> None:
    assert check_docstrings.main([str(ROOT / n) for n in ("operator", "hack", "benchmarks")]) == 0
