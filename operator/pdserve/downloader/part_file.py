"""The part of a file that has come so far, over all tries, and how many bytes may still come."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pdserve.downloader.errors import DownloadError

PIECE: Final = 1 << 20
SPARE: Final = 64 << 20
"""Bytes that stay free on the disk."""


@dataclass(slots=True)
class ByteBudget:
    """Bytes that one download may still write."""

    left: int
    total: int = field(init=False)

    def __post_init__(self) -> None:
        self.total = self.left

    def check(self, wanted: int) -> None:
        """Check that `wanted` bytes more fit.

        Raises:
            DownloadError: they do not.
        """
        if wanted > self.left:
            raise DownloadError(
                f"it is larger than {self.total / 1e9:g} GB (model.source.uri.maxGigabytes)"
            )

    def take(self, count: int) -> None:
        """Count bytes as written.

        Raises:
            DownloadError: they are too many.
        """
        self.check(count)
        self.left -= count


def check_room(folder: Path, count: int) -> None:
    """Check that the disk of `folder` has room for `count` bytes more, and keeps `SPARE`.

    Raises:
        DownloadError: it has not.
    """
    free = shutil.disk_usage(folder).free
    if count + SPARE > free:
        has = f"the node's disk has {free / 1e9:.2f} GB left"
        raise DownloadError(f"{count / 1e9:.2f} GB are to come, {has}")


class PartFile:
    """`.NAME.part`: open while it is a context, taken over from an earlier process if there is one.

    `size` bytes are there, and `digest` is their SHA-256. `resumed`: a request asked for the rest
    of what was there. `validator`: by which the server knows whether its file is still the same.
    """

    def __init__(self, path: Path, budget: ByteBudget) -> None:
        self._path, self._budget = path, budget
        self._number = -1
        self.digest = hashlib.sha256()
        self.size = 0
        self.validator = ""
        self.resumed = False
        self._take_over()

    def __enter__(self) -> PartFile:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._number = os.open(self._path, flags, 0o666)
        return self

    def __exit__(self, *_error: object) -> None:
        os.fsync(self._number)
        os.close(self._number)

    def restart(self) -> None:
        """Forget what is there."""
        os.ftruncate(self._number, 0)
        self.digest, self.size, self.validator = hashlib.sha256(), 0, ""

    def expect(self, rest: int | None) -> None:
        """Check, before any is written, that so many bytes more fit; None: not known.

        Raises:
            DownloadError: they are more than is allowed, or than the disk has room for.
        """
        self._budget.check(self.size + (rest or 0))
        check_room(self._path.parent, rest or 0)

    def write(self, piece: bytes) -> None:
        """Append.

        Raises:
            DownloadError: it is too much, also for the disk.
        """
        self._budget.check(self.size + len(piece))
        check_room(self._path.parent, len(piece))
        view = memoryview(piece)
        while view:
            view = view[os.write(self._number, view) :]
        self.digest.update(piece)
        self.size += len(piece)

    def _take_over(self) -> None:
        if self._path.is_symlink() or (self._path.exists() and not os.access(self._path, os.W_OK)):
            self._path.unlink()  # of a pod that ran as another user
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            while piece := file.read(PIECE):
                self.digest.update(piece)
                self.size += len(piece)
