"""`pdserve`: commands of other packages, present and absent."""

from __future__ import annotations

import argparse
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from pdserve.cli import main as cli

HERE = "tests.unit.cli.test_plugins"


def add_greeting(commands: Any) -> None:
    parser = commands.add_parser("greet", help="say hello")
    parser.add_argument("name")
    parser.set_defaults(run=greet)


def greet(arguments: argparse.Namespace) -> int:
    print(f"hello {arguments.name}")
    return 7


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        EntryPoint("greet", f"{HERE}:add_greeting", cli.PLUGINS),
        EntryPoint("demo", "no_such_package.demo:add_parser", cli.PLUGINS),
    ]
    monkeypatch.setattr(cli, "entry_points", lambda *, group: made if group == cli.PLUGINS else [])


@pytest.mark.usefixtures("plugins")
def test_a_command_of_another_package_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["greet", "you"]) == 7
    assert capsys.readouterr().out == "hello you\n"


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize("options", [[], ["--keep"], ["--out", "there", "-x"]])
def test_a_command_whose_package_is_absent_says_what_brings_it(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", *options]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "pdserve demo: not installed here (No module named 'no_such_package'); "
        "pip install 'pdserve[local]' brings it\n"
    )


@pytest.mark.usefixtures("plugins")
def test_other_commands_do_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out.startswith("pdserve ")
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    assert "demo      not installed here" in capsys.readouterr().out
