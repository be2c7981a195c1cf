"""The cache of programs: each folder is made once per machine, completely or not at all.

A lock file keeps two processes from making the same folder; the one that waits reports it. A folder
is filled under another name and then renamed, so an interrupted process leaves no incomplete
program. The next process removes what a killed one left.

Programs with equal content (SHA-256) are stored once and linked: two versions of Kubernetes may
come with the same etcd. No program is ever changed in place, so a link is as good as a copy.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from stat import S_ISREG

from localcluster.errors import Progress

_OWNER = "owner.lock"


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
        for left in cache.glob(f".{name}-*"):
            remove(left)
        if not holds(cache, name, wanted):
            scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache))
            try:
                (scratch / "bin").mkdir()
                fill(scratch)
                _share(scratch / "bin", cache)
                remove(target)
                scratch.rename(target)
            finally:
                remove(scratch)
    return target / "bin"


@contextmanager
def scratch_folder(cache: Path, name: str) -> Iterator[Path]:
    """A folder below `cache` for as long as the block lasts.

    Its owner holds a lock that ends with its process, so those of killed owners are known: they are
    removed first.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with (cache / f"{name}.lock").open("w") as one_at_a_time:
            fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
            for left in cache.glob(f".{name}-*"):
                _remove_unowned(left)
            folder = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache))
            stack.callback(remove, folder)
            owner = stack.enter_context((folder / _OWNER).open("w"))
            fcntl.flock(owner, fcntl.LOCK_EX)
        yield folder


def remove(tree: Path) -> None:
    """Remove a folder and all in it, also what Go made read-only; nothing there is fine."""
    for folder, _, _ in os.walk(tree):
        Path(folder).chmod(0o700)
    shutil.rmtree(tree, ignore_errors=True)


def _share(programs: Path, cache: Path) -> None:
    """Link each of `programs` to an equal one of the cache, or to one beside it.

    Equal: of one size, mode and SHA-256. Where a file system has no links, copies stay.
    """
    stored: dict[tuple[int, int], list[Path]] = {}
    others = (path for path in cache.glob("*/bin/*") if not path.parts[-3].startswith("."))
    for path in (*sorted(others), *sorted(programs.iterdir())):
        with suppress(OSError):  # another process may have removed it meanwhile
            about = path.lstat()
            if not S_ISREG(about.st_mode):
                continue
            alike = stored.setdefault((about.st_size, about.st_mode), [])
            if path.parent != programs or not _linked(path, alike):
                alike.append(path)


def _linked(path: Path, alike: Sequence[Path]) -> bool:
    """Replace `path` by a link to the first of `alike` with its content; False: none has it."""
    wanted = _sum(path) if alike else b""
    for other in alike:
        if _sum(other) == wanted:
            link = path.with_name(f".{path.name}")
            link.hardlink_to(other)
            link.replace(path)
            return True
    return False


def _sum(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _remove_unowned(folder: Path) -> None:
    with (folder / _OWNER).open("a") as owner:
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        remove(folder)


@contextmanager
def _locked(path: Path, name: str, progress: Progress) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting: another process is making {name}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
