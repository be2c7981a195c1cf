"""The reader of pages whose commands are run: `tests.support.page`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.support.page import PageError, Step, Terminal, steps

PAGE = """
# Title

```sh run kind
make kind
```
```sh run process
# without Docker
pdserve local up
```
Some words.
```sh run
export A=1   B=2
helm install x \\
  --wait

kubectl get x
```
```text shown
NAME    READY
...
x-...   True
```
```sh
not run
```
```text
not compared
```
```sh run until
kubectl wait
kubectl get y
```
```sh run process model
ask
```
"""


def test_commands_in_order_with_their_lines() -> None:
    assert [(s.line, s.command) for s in steps(PAGE)] == [
        (5, "make kind"),
        (9, "pdserve local up"),
        (13, "export A=1   B=2"),
        (14, "helm install x \\\n  --wait"),
        (17, "kubectl get x"),
        (31, "kubectl wait"),
        (32, "kubectl get y"),
        (35, "ask"),
    ]


def test_a_here_document_belongs_to_its_command() -> None:
    page = "```sh run\npython - << 'END'\n# a comment\n\nprint(1)\nEND\nls\n```\n"
    assert [(s.line, s.command) for s in steps(page)] == [
        (2, "python - << 'END'\n# a comment\n\nprint(1)\nEND"),
        (7, "ls"),
    ]


def test_each_sort_of_nodes_has_its_own_commands() -> None:
    assert [s.command for s in steps(PAGE, "kind")][:2] == ["make kind", "export A=1   B=2"]
    assert steps(PAGE, "process")[0].command == "pdserve local up"


def test_a_real_model_is_for_those_who_want_one() -> None:
    assert [s.command for s in steps(PAGE) if s.model] == ["ask"]
    assert [s.line for s in steps(PAGE, "process", model=False)] == [9, 13, 14, 17, 31, 32]
    assert [s.line for s in steps(PAGE, "kind")] == [5, 13, 14, 17, 31, 32]


def test_what_is_shown_belongs_to_the_last_command() -> None:
    assert {s.line: s.shown for s in steps(PAGE) if s.shown} == {
        17: ("NAME    READY", "x-...   True")
    }
    assert [s.line for s in steps(PAGE) if s.until] == [32]


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("```sh run\nls\n", "line 1: a block that is never closed"),
        ("```sh run knd\nls\n```", "line 2: what is `run knd`"),
        ("```sh run kind process\nls\n```", "what is `run kind process`"),
        ("```sh run\nls \\\n```", "line 2: the last command goes on"),
        ("```sh run\ncat << 'END'\nEND \n```", "line 2: the last command goes on"),
        ("```text shown\nx\n```", "line 2: shows an output"),
        ("```sh run\nls\n```\n```text shown\nx\n```\n```text shown\ny\n```", "line 8: shows"),
    ],
)
def test_pages_that_are_marked_wrongly(page: str, says: str) -> None:
    with pytest.raises(PageError, match=says):
        steps(page)


@pytest.mark.parametrize(
    ("shown", "output", "missing"),
    [
        (("a b",), "x\na   b\n", None),
        (("a b",), "x\na b c\n", "a b"),
        (("a...c",), "a b c\n", None),
        (("a", "b"), "a\nz\nb\n", None),
        (("a", "b"), "b\na\n", "b"),
        (("f(1) [x]",), "f(1) [x]\n", None),
        (("a.c",), "abc\n", "a.c"),
        (("  led",), "   led\n", None),
        (("a",), "", "a"),
        ((), "anything", None),
    ],
)
def test_what_counts_as_shown(shown: tuple[str, ...], output: str, missing: str | None) -> None:
    assert Step("x", 1, shown).missing(output) == missing


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    return Terminal(tmp_path, {"PATH": os.environ["PATH"]}, tmp_path)


def test_exports_hold_for_the_next_command(terminal: Terminal) -> None:
    terminal.run(Step('export NAME="two words"', 1), 10)
    assert terminal.run(Step('echo "<$NAME>"', 2, ("<two words>",)), 10).output == "<two words>\n"


def test_a_command_that_fails_fails_with_its_output(terminal: Terminal) -> None:
    with pytest.raises(AssertionError, match=r"line 7: `echo no >&2; false`: exit status 1\nno"):
        terminal.run(Step("echo no >&2; false", 7), 10)


def test_an_output_that_is_not_as_shown_fails(terminal: Terminal) -> None:
    with pytest.raises(AssertionError, match=r"line 7: .* prints no line 'b' there\na"):
        terminal.run(Step("echo a", 7, ("b",)), 10)


def test_until_repeats_the_command(terminal: Terminal, tmp_path: Path) -> None:
    step = Step(f"echo x >> {tmp_path}/n; wc -l < {tmp_path}/n", 1, ("3",), until=True)
    assert terminal.run(step, 30).output.strip() == "3"


def test_until_has_an_end(terminal: Terminal) -> None:
    with pytest.raises(AssertionError, match="prints no line"):
        terminal.run(Step("echo x", 1, ("y",), until=True), 0.1)


def test_a_command_that_hangs_is_ended_with_all_it_started(terminal: Terminal) -> None:
    with pytest.raises(AssertionError, match=r"killed after 0.2 s"):
        terminal.run(Step("sleep 60 & sleep 60", 1), 0.2)
