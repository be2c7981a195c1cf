"""The copy of one download in a directory of its own: made once, whole or not at all.

    lock               held while a process works here: pods of one node that want the same copy
                       wait for the first, and use what it made
    partial            what is not whole; the next run goes on from it
    partial-source     the manifest or archive that it comes from
    files              the copy
    pdserve-source.json    what it is a copy of, with the size of every file
    used               when a pod last asked for it

A copy is taken as it was recorded: the hashes were checked when it was made.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pdserve.downloader.transfer import Patience
from pdserve.downloader.watch import Say

FILES: Final = "files"
RECORD: Final = "pdserve-source.json"
_PARTIAL: Final = "partial"
_POLL: Final = 1.0
"""Seconds between looks at the lock."""


def copied(
    folder: Path, source: Mapping[str, str], fetch: Callable[[Path], None], say: Say,
    patience: Patience | None = None,
) -> bool:  # fmt: skip
    """Make sure that `folder/files` is a copy of `source`; whether it had to be made.

    Args:
        folder: is there, and belongs to this source alone.
        source: what it is a copy of.
        fetch: fills the directory that it is given, which may hold a part already.
        say: called with one line per step.
        patience: how to wait for another process.

    Raises:
        DownloadError: `fetch` did; what came so far stays for the next run.
    """
    with _locked(folder, say, patience or Patience()):
        _touch(folder / "used")
        if _is_copy(folder, source):
            return False
        partial = folder / _PARTIAL
        partial.mkdir(exist_ok=True)
        fetch(partial)
        shutil.rmtree(folder / FILES, ignore_errors=True)
        _readable(partial)
        _write(folder / RECORD, {"source": dict(source), "sizes": _sizes(partial)})
        partial.rename(folder / FILES)
        _sync(folder)
        return True


@contextmanager
def _locked(folder: Path, say: Say, patience: Patience) -> Iterator[None]:
    # The kernel lets go of it when a process ends in any way.
    number = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        waited = False
        while not _taken(number):
            if not waited:
                say("another pod of this node downloads the same; waiting for it")
            waited = True
            patience.sleep(_POLL)
        yield
    finally:
        os.close(number)


def _taken(number: int) -> bool:
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_copy(folder: Path, source: Mapping[str, str]) -> bool:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return bool(record["source"] == dict(source) and record["sizes"] == _sizes(folder / FILES))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if not path.is_dir())
    if not files:
        raise FileNotFoundError(folder)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _readable(folder: Path) -> None:
    """For every user: pods of one service may run as different ones."""
    for path in (folder, *folder.rglob("*")):
        # What a pod of another user began can be read already, and only that user may change it.
        if path.stat().st_uid == os.geteuid():
            path.chmod(0o755 if path.is_dir() else 0o644)


def _write(path: Path, document: Mapping[str, object]) -> None:
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def _touch(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.touch()


def _sync(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
