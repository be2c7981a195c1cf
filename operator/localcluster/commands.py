"""Runs other programs (docker, kind, go) while a person waits: output, progress, time limits.

A short command returns its output. A long one writes a log whose lines are passed on while it runs.
Neither outlives this process, and the error of a failure ends with the program's last line.
"""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from localcluster import processes
from localcluster.errors import LocalError, log_tail

_POLL_SECONDS = 0.05
"""How often a command is looked at, so that progress is shown while it runs."""


class CommandError(LocalError):
    """A program failed. `said` is the end of what it wrote."""

    def __init__(self, message: str, said: str) -> None:
        super().__init__(message)
        self.said = said


def answer(argv: Sequence[str], *, seconds: float = 60.0, stdin: IO[bytes] | None = None) -> str:
    """What a short command prints on standard output.

    Raises:
        CommandError: it failed, or took longer than `seconds`.
    """
    try:
        done = subprocess.run(
            list(argv),
            stdin=stdin or subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"`{_short(argv)}` took longer than {seconds:g} s", "") from error
    except OSError as error:
        raise CommandError(f"cannot run {argv[0]}: {error.strerror}", "") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise CommandError(f"`{_short(argv)}` failed: {said}", said)
    return done.stdout


def follow(
    argv: Sequence[str],
    log: Path,
    *,
    seconds: float = math.inf,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    line: Callable[[str], None] = lambda _: None,
    tick: Callable[[float], None] = lambda _: None,
) -> None:
    """Run a long command to its end; `line` gets its output, `tick` the seconds so far.

    Whatever interrupts the wait (Ctrl-C too) ends the command and all it started.

    Raises:
        CommandError: it failed, or took longer than `seconds`; with the end of its log.
    """
    log.unlink(missing_ok=True)
    began = time.monotonic()
    deadline = processes.Deadline(seconds)
    child = processes.spawn(argv, log=log, cwd=cwd, env=env)
    try:
        with log.open(encoding="utf-8", errors="replace") as output:
            pending = ""
            while True:
                ended = child.poll() is not None
                *whole, pending = (pending + output.read()).split("\n")
                for text in whole:
                    line(text)
                if ended:
                    break
                if deadline.passed:
                    raise CommandError(
                        f"`{_short(argv)}` took longer than {seconds:g} s:\n{log_tail(log)}",
                        log.read_text(encoding="utf-8", errors="replace"),
                    )
                tick(time.monotonic() - began)
                time.sleep(_POLL_SECONDS)  # its end and the next tick are awaited at once
    finally:
        processes.stop(child)
    if child.returncode != 0:
        raise CommandError(
            f"`{_short(argv)}` failed (exit {child.returncode}):\n{log_tail(log)}",
            log.read_text(encoding="utf-8", errors="replace"),
        )


def _short(argv: Sequence[str]) -> str:
    return " ".join([Path(argv[0]).name, *argv[1:4]])
