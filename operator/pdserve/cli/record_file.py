"""Lines of a record of decisions, as the operator's `--decisions-log` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

MOST_BYTES = 4_000_000
"""Of one line."""


class RecordFileError(Exception):
    """A record cannot be read; the message has its path and the line."""


def record_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not empty, read one by one.

    A last line without its end is one that the operator is writing: it is left out.

    Raises:
        RecordFileError: the file cannot be read, or a line is too long.
    """
    try:
        with path.open(encoding="utf-8") as file:
            number = 0
            while line := file.readline(MOST_BYTES):
                number += 1
                if not line.endswith("\n"):
                    if len(line) >= MOST_BYTES:
                        raise RecordFileError(f"{path}, line {number}: more than {MOST_BYTES} long")
                    return
                if line.strip():
                    yield number, line
    except (OSError, UnicodeDecodeError) as error:
        raise RecordFileError(f"{path}: {error}") from error
