"""Pages whose commands are run by tests: what a reader copies is what is tested.

A fenced block whose info string is `sh run` holds commands, one per line (`\\` continues one, and
so does a here-document: `<< 'END'`, up to the line `END`).
Words after `run` restrict or change it: `kind` or `process`: only on that sort of nodes; `model`:
only for readers who want a real model, which is downloaded; `until`: its last command is repeated,
as long as it succeeds, until what the page shows came out, as a reader would do who waits.
A block `text shown` that follows tells what the last command prints: each line must come, in this
order; `...` stands for any text in a line, and a line `...` for any lines. Other blocks are left
alone.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

NODES = ("kind", "process")
MODEL = "model"
UNTIL = "until"
UNTIL_SECONDS = 60.0
POLL_SECONDS = 0.5


_HERE = re.compile(r"<< '(\w+)'$")


class PageError(ValueError):
    """The page does not follow the rules above; the message names the line."""


@dataclass(frozen=True)
class Step:
    """One command, and what it must print."""

    command: str
    line: int
    """Where it stands in the page."""
    shown: tuple[str, ...] = ()
    nodes: str = ""
    """The only sort of nodes it is for; empty: all."""
    model: bool = False
    """Needs a real model."""
    until: bool = False

    def missing(self, output: str) -> str | None:
        """The first shown line that is not in the output after the one before; None: all are."""
        lines = iter(line.rstrip() for line in output.splitlines())
        for wanted in self.shown:
            pattern = _pattern(wanted)
            if not any(pattern.fullmatch(line) for line in lines):
                return wanted
        return None


def steps(page: str, nodes: str | None = None, *, model: bool = True) -> list[Step]:
    """The commands of a page, in order; with `nodes`, only those for that sort of nodes.

    Without `model`, those that need a real model are left out.

    Raises:
        PageError: a block that is marked wrongly.
    """
    found: list[Step] = []
    open_for_output = False
    for line, words, body in _blocks(page):
        if words[:2] == ["sh", "run"]:
            made = _run_block(line, words[2:], body)
            found += made
            open_for_output = bool(made)
        elif words[:2] == ["text", "shown"]:
            if not open_for_output:
                raise PageError(f"line {line}: shows an output, but no command stands before it")
            shown = tuple(s.rstrip() for s in body if s.strip() not in ("", "..."))
            found[-1] = replace(found[-1], shown=shown)
            open_for_output = False
    return [
        s for s in found if (nodes is None or s.nodes in ("", nodes)) and (model or not s.model)
    ]


def _blocks(page: str) -> list[tuple[int, list[str], list[str]]]:
    """Fenced blocks: line of the first content, words of the info string, content."""
    blocks = []
    start, words, body = 0, None, []
    for number, line in enumerate(page.splitlines(), 1):
        if not line.startswith("```"):
            body.append(line)
        elif words is None:
            start, words, body = number + 1, line[3:].split(), []
        else:
            blocks.append((start, words, body))
            words, body = None, []
    if words is not None:
        raise PageError(f"line {start - 1}: a block that is never closed")
    return blocks


def _run_block(line: int, marks: Sequence[str], body: Sequence[str]) -> list[Step]:
    unknown = set(marks) - {*NODES, MODEL, UNTIL}
    if unknown or len(set(marks) & set(NODES)) > 1:
        raise PageError(f"line {line}: what is `run {' '.join(marks)}`?")
    nodes = next((m for m in marks if m in NODES), "")
    made: list[Step] = []
    pending, begun, here = "", 0, ""
    for number, text in enumerate(body, line):
        begun = begun if pending else number
        pending += text
        if opened := _HERE.search(text):
            here = opened[1]
        if (here and text != here) or (not here and text.endswith("\\")):
            pending += "\n"
            continue
        here = ""
        if pending.strip() and not pending.lstrip().startswith("#"):
            made.append(Step(pending.strip(), begun, nodes=nodes, model=MODEL in marks))
        pending = ""
    if pending:
        raise PageError(f"line {begun}: the last command goes on after the block")
    if UNTIL in marks and made:
        made[-1] = replace(made[-1], until=True)
    return made


def _pattern(shown: str) -> re.Pattern[str]:
    parts = ("".join(_spaced(part)) for part in shown.split("..."))
    return re.compile(".*".join(parts))


def _spaced(text: str) -> list[str]:
    """Columns are padded to what is in them: any run of blanks equals any other."""
    return [r"\s+" if part.isspace() else re.escape(part) for part in re.split(r"(\s+)", text)]


@dataclass(frozen=True)
class Ran:
    """What came of a step."""

    step: Step
    output: str
    """Standard output and standard error, as on a terminal."""
    seconds: float


class Terminal:
    """A reader's terminal: exports of one command hold for the next ones."""

    def __init__(self, folder: Path, environment: Mapping[str, str], scratch: Path) -> None:
        self._folder = folder
        self._exports = scratch / "exports"
        self._exports.write_text("")
        self._environment = dict(environment)

    def run(self, step: Step, timeout: float) -> Ran:
        """Run a step to its end, and check what it shows; fails with its output."""
        began = time.monotonic()
        deadline = began + min(timeout, UNTIL_SECONDS)
        while True:
            done = self._bash(step.command, timeout)
            missing = step.missing(done.stdout)
            waits = step.until and missing and done.returncode == 0
            if not waits or time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
        where = f"line {step.line}: `{step.command}`"
        assert done.returncode == 0, f"{where}: exit status {done.returncode}\n{done.stdout}"
        assert missing is None, f"{where}: prints no line {missing!r} there\n{done.stdout}"
        return Ran(step, done.stdout, time.monotonic() - began)

    def look(self, command: str) -> str:
        """Output of a command that is not the page's, whatever its exit status."""
        return self._bash(command, 60.0).stdout

    def _bash(self, command: str, timeout: float) -> subprocess.CompletedProcess[str]:
        exports = shlex.quote(str(self._exports))
        script = f". {exports}\n{command}\nstatus=$?\nexport -p > {exports}\nexit $status"
        with subprocess.Popen(
            ["bash", "-c", script],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=timeout)
            except BaseException as error:
                # Also what the command started: it holds the pipe.
                os.killpg(process.pid, signal.SIGKILL)
                output, _ = process.communicate()
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                output += f"\n(killed after {timeout:g} s)"
        return subprocess.CompletedProcess(command, process.returncode, output)
