"""Fields that nothing reads, or sets, in a small typed package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "hack"))

from unread_fields import allowed, complaints, findings, set_by_words, uses_of  # noqa: E402

SOURCE = '''
from collections import OrderedDict
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple, Protocol


@dataclass
class Plain:
    used: int
    unread: int
    unset: str | None = None
    tuned: float = 2.5
    by_test: bool = False
    copied: bool = False
    added: list[int] = field(default_factory=list)


@dataclass
class Other:
    unread: int
    """A name that is read of this class says nothing of another's."""


class Row(NamedTuple):
    left: int
    right: int


class Key(NamedTuple):
    part: int


class Shown(Protocol):
    @property
    def told(self) -> int: ...


@dataclass
class Told:
    told: int
    quiet: int = 1


@dataclass
class Child(Told):
    own: int = 1


@dataclass
class Written:
    out: int


@dataclass(order=True)
class Rank:
    first: int


@dataclass
class Matched:
    value: int
    word: int


@dataclass
class Asked:
    name: int
    other: int


def use(p: Plain, o: Other, s: Shown, c: Child, m: object, a: Asked | None) -> object:
    p = replace(p, copied=True)
    if p.unset or p.tuned or p.by_test or p.copied:
        p.added.append(1)
    left, right = Row(1, 2)
    match m:
        case Matched(value=v):
            print(v)
    print(getattr(a, "name"), asdict(Written(1)), Rank(1) < Rank(2), c.own)
    kept: OrderedDict[Key, int] = OrderedDict()
    return [p.used, o.unread, s.told, kept]


made = use(Plain(1, 2), Other(1), Told(1), Child(1), Matched(1, 2), Asked(1, 2))
'''
WANT = {
    "toy.code.Asked.other": "is never read",
    "toy.code.Matched.word": "is never read",
    "toy.code.Plain.by_test": "is never set",
    "toy.code.Plain.unread": "is never read",
    "toy.code.Plain.unset": "is never set",
    "toy.code.Told.quiet": "is never read",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], dict[str, str]]:
    """Findings alone, and with what tests set."""
    root = tmp_path_factory.mktemp("toy")
    (root / "toy").mkdir()
    (root / "toy" / "__init__.py").touch()
    (root / "toy" / "code.py").write_text(SOURCE)
    (root / "test_toy.py").write_text("Plain(1, 2, by_test=True)\n")
    config = root / "pyproject.toml"
    config.write_text(f'[tool.mypy]\nfiles = ["{root}/toy"]\nmypy_path = "{root}"\n')
    uses, fields = uses_of(config, "toy")
    words = set_by_words([root / "test_toy.py"])
    return findings(uses, fields), findings(uses, fields, words)


def test_what_is_not_read_or_set_is_found(found: tuple[dict[str, str], dict[str, str]]) -> None:
    assert {name: line.partition(f"{name} ")[2] for name, line in found[0].items()} == WANT
    assert found[0]["toy.code.Plain.unread"].partition(": ")[0].endswith("toy/code.py:10")


def test_what_tests_set_is_set(found: tuple[dict[str, str], dict[str, str]]) -> None:
    assert set(found[0]) - set(found[1]) == {"toy.code.Plain.by_test"}


def test_the_allow_list_is_no_longer_than_needed() -> None:
    allow = allowed("# head\na.B.c: for people\na.B.d:\na.B.e: was not read\n")
    assert complaints({"a.B.c": "1", "a.B.d": "2", "a.B.f": "3"}, allow) == [
        "3",
        "unread_fields.allow: a.B.d has no reason",
        "unread_fields.allow: a.B.e is read and set now: remove the entry",
    ]
