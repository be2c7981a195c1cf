"""Mutants, their sample, and a run over a small package whose tests are known to be weak."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "hack"))

from mutants import Mutant, drawn, mutants, mutated  # noqa: E402
from mutation_score import (  # noqa: E402
    KILLED,
    SURVIVED,
    UNFIT,
    Progress,
    Tally,
    accepted,
    duration,
    report,
    stale,
    wilson,
)

CHANGES = [
    ("a < b", ["a <= b"]),
    ("a is None", ["a is not None"]),
    ("a + b", ["a - b"]),
    ("a and b", ["a or b", "b", "a"]),
    ("not a", ["a"]),
    ("-a", ["a"]),
    ("a if b else c", ["a", "c"]),
    ("True", ["False"]),
    ("3", ["4"]),
    ("0.5", ["1.5"]),
    ("min(a, b)", ["max(a, b)"]),
    ("sorted(a, key=b)", ["list(a)", "sorted(a)"]),
    ("replace(a, b=c, d=e)", ["replace(a, d=e)", "replace(a, b=c)"]),
    ("'text'", []),
    ("f'{1 + 2}'", []),
    ("'%s' % a", []),
]


@pytest.mark.parametrize(("code", "want"), CHANGES, ids=[c[0] for c in CHANGES])
def test_what_becomes_of_an_expression(code: str, want: list[str]) -> None:
    found = mutants("m.py", f"def f(a, b, c, d, e):\n    return {code}\n")
    assert [m.after for m in found if m.before == ast.unparse(ast.parse(code))] == want


def test_text_types_and_errors_are_left_alone() -> None:
    source = '''"""Doc."""
from typing import Literal
Kind = Literal["a", "b"]
@decorated(1)
def f(x: int | None = None) -> "int | str":
    """Doc."""
    assert x is not None
    if x: raise ValueError(f"{x + 1}", 2 + 3)
'''
    assert [m.before for m in mutants("m.py", source)] == [
        "if x: raise ValueError(f'{x + 1}', 2 + 3)"
    ]


def test_the_guard_of_a_zip_is_left_alone_and_no_other_flag() -> None:
    source = (
        "def f(a, b):\n    return zip(a[1], b, strict=True), zip(a, strict=False), g(strict=True)\n"
    )
    assert [(m.before, m.after) for m in mutants("m.py", source)] == [
        ("1", "2"),
        ("False", "True"),
        ("True", "False"),
    ]


def test_a_mutant_says_where_it_is_and_is_made_there() -> None:
    source = (
        "X = 1\nclass A:\n    def f(self, a=2):\n        def g(): return a < 3\n        return g\n"
    )
    where = {m.before: m.function for m in mutants("m.py", source)}
    assert where == {"1": "", "2": "", "a < 3": "A.f", "3": "A.f"}
    (wanted,) = (m for m in mutants("m.py", source) if m.before == "a < 3")
    changed = ast.unparse(mutated(source, wanted))
    assert changed == ast.unparse(ast.parse(source.replace("a < 3", "a <= 3")))


def test_mutants_of_one_function_that_read_alike_have_names_of_their_own() -> None:
    source = "def f(a): return a + 1 < 1\ndef g(): return 1\n"
    ones = [m.name for m in mutants("m.py", source) if m.before == "1"]
    assert ones == ["m.py f: 1 -> 2", "m.py f: 1 -> 2 (2)", "m.py g: 1 -> 2"]


def test_each_module_has_its_share_of_the_sample_whatever_the_seed() -> None:
    by_path = {
        path: [Mutant(path, "", k, k, 0, "a", "b") for k in range(count)]
        for path, count in (("a.py", 60), ("b.py", 30), ("c.py", 10), ("d.py", 0))
    }
    for seed in range(20):
        sample = drawn(by_path, 20, seed)
        counts = [sum(m.path == path for m in sample) for path in by_path]
        assert counts == [12, 6, 2, 0]
        assert len(set(sample)) == 20
        assert sample == drawn(by_path, 20, seed)
    assert drawn(by_path, 20, 1) != drawn(by_path, 20, 2)
    assert len(drawn(by_path, 1000, 1)) == 100


@pytest.mark.parametrize(
    ("hits", "total", "want"),
    [
        (0, 0, (0.0, 1.0)),
        (0, 10, (0.0, 0.2775)),
        (10, 10, (0.7225, 1.0)),
        (81, 263, (0.2553, 0.3662)),  # Newcombe 1998, table I
    ],
)
def test_the_interval_is_wilsons(hits: int, total: int, want: tuple[float, float]) -> None:
    assert wilson(hits, total) == pytest.approx(want, abs=1e-4)


def test_a_change_behind_a_long_text_is_shown_where_it_is() -> None:
    source = f"def f(a):\n    return a == {'x' * 200!r} and a < 1\n"
    (shown,) = (m for m in mutants("m.py", source) if m.after.endswith(" or a < 1"))
    assert shown.before.endswith("x' and a < 1")
    assert len(shown.before) <= 120


def test_an_accepted_name_that_no_mutant_has_is_reported() -> None:
    by_path = {"m.py": mutants("m.py", "def f(a): return a < 1\n")}
    names = [m.name for m in by_path["m.py"]]
    gone = ["m.py f: a < 2 -> a <= 2", "gone.py f: 1 -> 2"]
    assert stale(by_path, [*names, *gone]) == gone


def test_the_time_of_two_thousand_follows_from_that_of_a_sample() -> None:
    want = "1.50 s on the CPU a mutant; 2,000 take 26 min on two idle cores"
    assert duration(60.0, 210.0, 100) == want


def test_a_folder_of_which_nothing_was_judged_has_no_score(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tally = {"a/one": Tally(killed=10), "a/two": Tally(unfit=1)}
    assert report(tally, 3, 0.7, 9.0) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[1].split() == ["one", "10", "10", "0", "100.0", "%", "72.2", "..", "100.0", "%"]
    assert rows[2].split() == ["two", "0", "0", "0", "-"]


def test_a_run_that_judged_nothing_prints_no_score(capsys: pytest.CaptureFixture[str]) -> None:
    assert report({"a/one": Tally(unfit=1)}, 3, 0.0, 9.0) == 1
    want = "nothing was judged: 3 accepted, 1 could not be made; 9 s\n"
    assert capsys.readouterr().out == want


def test_progress_is_said_every_half_minute(capsys: pytest.CaptureFixture[str]) -> None:
    now = [1000.0]
    mutant = Mutant("m.py", "f", 7, 0, 0, "a", "b")
    progress = Progress(100, lambda: now[0])
    progress.trace(12)
    now[0] = 1200.0  # the tests ran unchanged until then
    progress.begin()
    for code in (KILLED, SURVIVED, -signal.SIGXCPU, UNFIT, KILLED, KILLED, KILLED):
        now[0] += 10.0
        progress.judged(mutant, code, 5)
    progress.ends = now[0] + 300.0
    for _ in range(3):
        now[0] += 10.0
        progress.judged(mutant, KILLED, 5)
    said = capsys.readouterr()
    assert said.out == "survived (5 tests call it): line 7\nm.py f: a -> b\n"
    assert said.err.splitlines() == [
        "running 12 tests unchanged",
        "they pass; judging 100 mutants",
        "3 of 100 judged, 2 noticed; about 17 min left",
        "6 of 100 judged, 4 noticed; about 16 min left",
        "9 of 100 judged, 7 noticed; about 5 min left",
    ]


def test_an_accepted_mutant_has_a_reason() -> None:
    text = "# head\na.py f: 1 -> 2  # the bound is never reached\n"
    assert accepted(text) == {"a.py f: 1 -> 2": "the bound is never reached"}
    with pytest.raises(SystemExit, match="no reason"):
        accepted("a.py f: 1 -> 2\n")


SOURCE = """
import functools

LIMIT = 3

def limits():
    return (LIMIT, 5)

LIMITS = limits()

@functools.cache
def halved(x):
    return x // 2

def over(x):
    return x > LIMIT

def unheld(x):
    return x + 1

def endless(n):
    while n > 0:
        n -= 1
    return n

def nowhere_called():
    return 7
"""
TESTS = """
from pkg import code

def test_limits_are_made_at_import():
    assert code.LIMITS == (3, 5)

def test_halved_for_the_first_time():
    code.halved(9)

def test_halved_once_more():
    assert code.halved(9) == 4

def test_over():
    assert [code.over(x) for x in (3, 4)] == [False, True]

def test_unheld():
    code.unheld(1)

def test_endless():
    assert code.endless(2) == 0
"""


def test_a_run_ends_when_its_time_is_over(tmp_path: Path) -> None:
    done = _run(tmp_path, "--minutes", "0")
    assert "seed 1: " in done.stdout
    assert "nothing was judged: 0 accepted, 0 could not be made" in done.stdout
    assert "2,000" not in done.stdout
    assert done.returncode == 1, "nothing is known"


def test_a_run_tells_what_tests_hold(tmp_path: Path) -> None:
    done = _run(tmp_path)
    survived = sorted(
        name for line, name in pairwise(done.stdout.splitlines()) if line.startswith("survived")
    )
    want = [
        "pkg/code.py endless: 1 -> 2",
        "pkg/code.py nowhere_called: 7 -> 8",
        "pkg/code.py unheld: 1 -> 2",
        "pkg/code.py unheld: x + 1 -> x - 1",
    ]
    assert survived == want, done.stdout + done.stderr
    assert done.returncode == 1, "below the floor"
    assert "seed 1: " in done.stdout
    assert "running 6 tests unchanged\nthey pass; judging 12 mutants\n" in done.stderr


def _run(tmp_path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "code.py").write_text(SOURCE)
    (tmp_path / "pkg" / "__init__.py").touch()
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_code.py").write_text(TESTS)
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    command = [sys.executable, str(ROOT / "hack" / "mutate.py"), "--root", str(tmp_path)]
    command += ["--pair", "pkg", "tests", "--seed", "1", "--jobs", "2", "--cpu-seconds", "1"]
    return subprocess.run(
        [*command, *more], capture_output=True, text=True, cwd=tmp_path, check=False
    )
