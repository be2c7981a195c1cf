"""The cache of programs: each folder is made once per machine, whole or not at all.

A lock file keeps two processes from making the same folder; the one that waits says so. A folder
is filled under another name and moves into its place by rename, so whoever is interrupted leaves
no half program.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pdserve.local.errors import Progress


def holds(cache: Path, name: str, programs: Iterable[str]) -> bool:
    """Whether the cache has folder `name` with all of `programs` in its `bin`."""
    return all((cache / name / "bin" / program).exists() for program in programs)


def make(
    cache: Path,
    name: str,
    programs: Iterable[str],
    fill: Callable[[Path], None],
    progress: Progress,
) -> Path:
    """The `bin` of folder `name`; `fill` makes it unless all of `programs` are there.

    `fill` gets an empty folder with an empty `bin`. What it raises is raised, and nothing is left.
    """
    wanted = tuple(programs)
    target = cache / name
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{name}.lock", name, progress):
        if not holds(cache, name, wanted):
            scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache))
            try:
                (scratch / "bin").mkdir()
                fill(scratch)
                shutil.rmtree(target, ignore_errors=True)
                scratch.rename(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return target / "bin"


@contextmanager
def _locked(path: Path, name: str, progress: Progress) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting: another process is making {name}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
