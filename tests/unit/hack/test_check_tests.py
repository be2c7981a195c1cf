"""`make lint` refuses long modules of tests, and tests that touch private names of the product."""

from __future__ import annotations

from pathlib import Path

import pytest
from hack import check_tests

ROOT = Path(__file__).parents[3]
PRODUCT = """
_LIMIT = 5

def _parse(text): ...

class Cache:
    def __init__(self):
        self._held = {}
        self.open = True

    def _trim(self): ...
"""
CASES: tuple[tuple[str, str, list[str]], ...] = (
    ("public names", "cache.open\ncache.close()", []),
    ("an attribute", "cache._held", ["test_a.py:1: cache._held is private"]),
    ("a method", "x = f(cache)._trim()", ["test_a.py:1: f(cache)._trim is private"]),
    (
        "an import",
        "from pdserve.cache import _parse, Cache",
        ["test_a.py:1: from pdserve.cache import _parse is private"],
    ),
    ("of a module", "cache_module._LIMIT", ["test_a.py:1: cache_module._LIMIT is private"]),
    (
        "monkeypatch",
        "patcher.setattr(cache, '_trim', 1)",
        ["test_a.py:1: setattr of '_trim' is private"],
    ),
    (
        "monkeypatch by path",
        "patcher.setattr('pdserve.cache._LIMIT', 1)",
        ["test_a.py:1: setattr of 'pdserve.cache._LIMIT' is private"],
    ),
    ("getattr", "getattr(cache, '_held')", ["test_a.py:1: getattr of '_held' is private"]),
    (
        "inherited from the product",
        "class Mine(Cache):\n    def size(self):\n        return self._held",
        ["test_a.py:3: self._held is private"],
    ),
    (
        "its own",
        "class Mine:\n    def __init__(self):\n        self._held = 1\n\nMine()._held",
        [],
    ),
    (
        "a function of its own is no member",
        "def _held(cache):\n    return cache._held",
        ["test_a.py:2: cache._held is private"],
    ),
    ("of others than the product", "sys._getframe()\nrow._replace(a=1)\nrow.__dict__", []),
    ("a word", "say('_held')", []),
)


@pytest.mark.parametrize(("case", "test", "want"), CASES, ids=[c[0] for c in CASES])
def test_private_names(case: str, test: str, want: list[str]) -> None:
    assert check_tests.findings({"test_a.py": f"{test}\n"}, [PRODUCT]) == want, case


def test_what_a_test_inherits_from_another_test_is_theirs() -> None:
    tests = {
        "support.py": "class Base:\n    def __init__(self):\n        self._held = 1\n",
        "test_a.py": "class Mine(Base):\n    def size(self):\n        return self._held\n",
    }
    assert check_tests.findings(tests, [PRODUCT]) == []


@pytest.mark.parametrize(("lines", "found"), [(350, False), (351, True)])
def test_long_modules(lines: int, found: bool) -> None:
    want = ["test_a.py: 351 lines, more than 350: split it by behaviour"] if found else []
    assert check_tests.findings({"test_a.py": "x = 1\n" * lines}, [PRODUCT]) == want


def test_the_exit_code_and_the_message_name_the_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, text in (("tests", "cache.open\n"), ("operator", PRODUCT)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text(text)
    folders = [str(tmp_path / "tests"), str(tmp_path / "operator")]
    assert check_tests.main(folders) == 0
    (tmp_path / "tests" / "a.py").write_text("cache._held\n")
    assert check_tests.main(folders) == 1
    assert f"{tmp_path}/tests/a.py:1: cache._held is private" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["tests"], ["/nonexistent", "tests"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert check_tests.main(arguments) == 2
    assert "usage" in capsys.readouterr().err


def test_these_tests_are_short_and_touch_nothing_private() -> None:
    folders = [str(ROOT / name) for name in ("tests", "operator", "hack", "benchmarks")]
    assert check_tests.main(folders) == 0
