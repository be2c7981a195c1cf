"""Words that make people of processes fail `make lint`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hack import plain_words
from hack.plain_words import allowed, complaints, texts, words

PLANTED = [
    ("# nobody is waiting", "nobody"),
    ('"""Somebody\'s pod."""', "somebody's"),
    ("whoever_looks = 1", "whoever"),
    ("def test_a_strangers_pod() -> None: ...", "strangers"),
    ("class BeliefTable: ...", "belief"),
    ("a gloomy model", "gloomy"),
    ("shunsUntil: 5", "shuns"),
    ("raise Error('the story ends')", "story"),
    ("queue.poke(key)", "poke"),
    ("blamed_on = 1", "blamed"),
    ("DISTRUST = 1", "distrust"),
    ("def told_of(domain): ...", "told of"),
    ("the engine is told", "is told"),
    ("rescued: 3", "rescued"),
]
PLAIN = [
    "history and directory",
    "a hopeless `twinkle`, oneself, somehow",
    "`told` is a variable; the log tells why",
    "no body, some one-shot task",
    "no oneof",
]


@pytest.mark.parametrize(("line", "word"), PLANTED, ids=[w for _, w in PLANTED])
def test_a_planted_word_is_found(line: str, word: str) -> None:
    assert [found for found, _ in words(line, ())] == [word]


@pytest.mark.parametrize("line", PLAIN)
def test_plain_words_pass(line: str) -> None:
    assert list(words(line, ())) == []


def test_what_is_allowed_stays_and_needs_a_reason() -> None:
    allow = allowed("# head\nas nobody: a Unix user\nq.md: quotes\nold phrase: was there\nruns: \n")
    files = {"a.py": "runs as nobody\n\nnobody\n", "q.md": "nobody\n", "b/nobody.py": "b = 1\n"}
    assert [line.split(": ")[:2] for line in complaints(files, allow)] == [
        ["a.py:3", "'nobody'"],
        ["b/nobody.py:0", "'nobody'"],
        ["plain_words.allow", "old phrase"],
        ["plain_words.allow", "runs"],
    ]


def test_files_of_a_clone_are_read_and_the_exit_code_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setattr(plain_words, "ROOT", tmp_path)
    monkeypatch.setattr(plain_words, "ALLOW", tmp_path / "plain_words.allow")
    (tmp_path / "plain_words.allow").write_text("")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("A page.\n")
    (tmp_path / "docs" / "picture.bin").write_bytes(b"nobody\0")
    (tmp_path / "elsewhere.md").write_text("nobody\n")
    assert texts(tmp_path) == {"docs/a.md": "A page.\n"}
    assert plain_words.main() == 0
    (tmp_path / "docs" / "a.md").write_text("A page.\nNobody reads it.\n")
    assert plain_words.main() == 1
    assert "docs/a.md:2: 'nobody': name who" in capsys.readouterr().out


def test_this_repository_is_plain() -> None:
    assert plain_words.main() == 0
