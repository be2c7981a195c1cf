"""What a URI names, as files of one directory: a file, the files of a manifest, or an archive."""

from __future__ import annotations

import hashlib
import lzma
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Literal
from urllib.parse import quote, urljoin

from pdserve.downloader.errors import DownloadError
from pdserve.downloader.part_file import PIECE, ByteBudget, check_room
from pdserve.downloader.transfer import Transfer
from pdserve.downloader.watch import Say

Content = Literal["file", "manifest", "archive"]
MAX_MANIFEST: Final = 4 << 20
"""Bytes."""
MAX_FILES: Final = 10_000
_BROKEN: Final = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError)
"""Of an archive: what reading it raises."""
_LINE: Final = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@=-]{0,254}")
"""Of a file or directory: none begins with a dot or a dash."""


@dataclass(frozen=True, slots=True)
class WantedContent:
    """What is to be downloaded."""

    url: str
    """Without credentials; ends with a file's name."""
    sha256: str
    """Of what it names, in hexadecimal digits."""
    content: Content
    max_bytes: int
    """Most that is written, an archive and what is in it together."""


def fetch_content(wanted: WantedContent, folder: Path, transfer: Transfer, say: Say) -> None:
    """Leave the files of what is wanted in `folder`, which may hold some of them already.

    Args:
        wanted: what.
        folder: is there.
        transfer: fetches single files.
        say: called with one line per step.

    Raises:
        DownloadError: it cannot be had, or is not what it is said to be.
    """
    budget = ByteBudget(wanted.max_bytes)
    name = wanted.url.rpartition("/")[2]
    if wanted.content == "file":
        _fetch(transfer, wanted.url, wanted.sha256, folder / name, budget)
        return
    aside = folder.with_name(f"{folder.name}-source")
    aside.mkdir(exist_ok=True)
    if wanted.content == "archive":
        _fetch(transfer, wanted.url, wanted.sha256, aside / name, budget)
        # What another try unpacked is of no use.
        shutil.rmtree(folder)
        folder.mkdir()
        _unpack(aside / name, folder, budget)
    else:
        bounded = ByteBudget(min(wanted.max_bytes, MAX_MANIFEST))
        _fetch(transfer, wanted.url, wanted.sha256, aside / name, bounded)
        listed = read_manifest((aside / name).read_bytes())
        for number, (path, digest) in enumerate(listed.items(), 1):
            say(f"file {number} of {len(listed)}: {path}")
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            _fetch(transfer, urljoin(wanted.url, quote(path)), digest, target, budget)
    shutil.rmtree(aside)


def read_manifest(data: bytes) -> Mapping[str, str]:
    """SHA-256 by path, of what `sha256sum FILE...` prints.

    Raises:
        DownloadError: it is something else, or a path leads out of its directory.
    """
    found: dict[str, str] = {}
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DownloadError("the manifest is not UTF-8 text") from error
    for number, line in enumerate(filter(str.strip, lines), 1):
        match = _LINE.fullmatch(line.rstrip())
        path = match[2].removeprefix("./") if match else ""
        if match is None or not _is_inside(path):
            raise DownloadError(f"the manifest's line {number} is no SHA-256 with a relative path")
        if found.setdefault(path, match[1]) != match[1]:
            raise DownloadError(f"the manifest has two SHA-256 of {path}")
    if not 0 < len(found) <= MAX_FILES:
        raise DownloadError(f"the manifest names {len(found)} files; 1 to {MAX_FILES} are right")
    return found


def _fetch(transfer: Transfer, url: str, sha256: str, target: Path, budget: ByteBudget) -> None:
    """As `Transfer.fetch`; what an earlier run of this download checked is taken as it is."""
    if target.is_file():
        if _sha256(target) == sha256:
            budget.take(target.stat().st_size)
            return
        target.unlink()
    transfer.fetch(url, sha256, target, budget)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_inside(path: str) -> bool:
    parts = path.split("/")
    return len(path) <= 512 and len(parts) <= 16 and all(_NAME.fullmatch(p) for p in parts)


def _unpack(archive: Path, folder: Path, budget: ByteBudget) -> None:
    """Files and directories of a tar file; one directory around all of them is left out."""
    try:
        with tarfile.open(archive, "r:*") as packed:
            for member, path in _members(packed):
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                _write(packed, member, target, budget)
            if packed.fileobj is not None:
                packed.fileobj.read(PIECE)  # to the checksum at the end of what is compressed
    except _BROKEN as error:
        raise DownloadError(f"{archive.name}: it cannot be unpacked ({error})") from error
    entries = list(folder.iterdir())
    if not entries:
        raise DownloadError(f"{archive.name}: there is no file in it")
    if len(entries) == 1 and entries[0].is_dir():
        around = folder.with_name(f"{folder.name}-around")
        shutil.rmtree(around, ignore_errors=True)  # of a run that was killed right here
        entries[0].rename(around)
        folder.rmdir()
        around.rename(folder)


def _members(packed: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, PurePosixPath]]:
    for number, member in enumerate(packed):
        path = member.name.removeprefix("./").rstrip("/")
        if number >= MAX_FILES:
            raise DownloadError(f"the archive has more than {MAX_FILES} files")
        if member.isdir() and (path in ("", ".") or _is_inside(path)):
            continue
        if not member.isreg() or not _is_inside(path):
            raise DownloadError(f"the archive has {member.name[:100]!r}, which is no plain file")
        yield member, PurePosixPath(path)


def _write(
    packed: tarfile.TarFile, member: tarfile.TarInfo, target: Path, budget: ByteBudget
) -> None:
    source = packed.extractfile(member)
    if source is None:
        raise DownloadError(f"the archive has {member.name[:100]!r}, which is no plain file")
    with target.open("xb") as file:
        while piece := source.read(PIECE):
            budget.take(len(piece))
            check_room(target.parent, len(piece))
            file.write(piece)
