"""The wheelhouse: what builds install from when they reach no package index.

It is made on the host, by this Python's pip, for the Python of the base image. `.made-for` in it
says for what, so that it is made again only when that changes; a wheelhouse without that file is
the user's own and is used as it is.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

from hack.images.base import HERE, Python, Wheels
from hack.images.containers import ImagesError, say
from hack.images.install import IMAGES, standalone, wanted

WHEELHOUSE = HERE / "wheelhouse"
STAMP = ".made-for"
_OLDEST_GLIBC_MINOR = 5
_OLDEST_MUSL_MINOR = 1


def source(asked: str, python: Python, wheelhouse: Path = WHEELHOUSE) -> Wheels:
    """Where a build takes wheels from: `asked`, unless that is `auto`.

    A wheelhouse of the user's own comes first, then the index, if builds reach one.
    """
    if asked == "index":
        return "index"
    if asked == "wheelhouse" or own(wheelhouse):
        return "wheelhouse"
    return "index" if python.index else "wheelhouse"


def own(wheelhouse: Path = WHEELHOUSE) -> bool:
    """Whether wheels were put there by hand."""
    return any(wheelhouse.glob("*.whl")) and not (wheelhouse / STAMP).exists()


def fill(
    python: Python,
    root: Path,
    wheelhouse: Path = WHEELHOUSE,
    download: Callable[[Sequence[str], Path], None] | None = None,
) -> None:
    """Make the wheelhouse unless it is there for the same Python and requirements.

    Args:
        python: what the wheels are for.
        root: the checkout with pyproject.toml and the constraints.
        wheelhouse: where to; what is there stays until the new wheels are.
        download: called with pip's arguments and a folder to fill.

    Raises:
        ImagesError: pip found no wheel of something.
    """
    if own(wheelhouse):
        return
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    constraints = root / "hack" / "constraints.txt"
    requirements = sorted({r for image in IMAGES for r in wanted(project, image)} | {"pip"})
    flags = [*target(python), "--constraint", str(constraints)]
    made_for = _stamp([*requirements, *flags, constraints.read_text()])
    stamp = wheelhouse / STAMP
    if stamp.exists() and stamp.read_text() == made_for:
        return
    version = ".".join(map(str, python.version))
    say(f"downloading wheels for Python {version}, {python.machine}: the build reaches no index")
    began = time.monotonic()
    alone = [r for r in requirements if standalone(r)]
    scratch = wheelhouse / ".new"
    try:
        (download or _download)([*flags, *(r for r in requirements if r not in alone)], scratch)
        if alone:
            (download or _download)([*flags, "--no-deps", *alone], scratch)
        stamp.unlink(missing_ok=True)
        for wheel in wheelhouse.glob("*.whl"):
            wheel.unlink()
        for wheel in scratch.iterdir():
            wheel.rename(wheelhouse / wheel.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    stamp.write_text(made_for)
    count = len(list(wheelhouse.glob("*.whl")))
    say(f"downloaded {count} wheels in {time.monotonic() - began:.0f} s")


def target(python: Python) -> list[str]:
    """pip's flags for wheels of another Python and C library than those it runs on.

    manylinux_2_17 says: runs with glibc 2.17 and every newer one (PEP 600); musllinux likewise
    (PEP 656). pip takes such tags literally, so each older one is named too.

    Raises:
        ImagesError: a C library that no wheels are published for.
    """
    family = {
        "glibc": ("manylinux", _OLDEST_GLIBC_MINOR),
        "musl": ("musllinux", _OLDEST_MUSL_MINOR),
    }
    if python.libc not in family:
        raise ImagesError(f"no wheels are published for the C library {python.libc or 'unknown'!r}")
    name, oldest = family[python.libc]
    major, minor = (int(part) for part in python.libc_version.split(".")[:2])
    tags = [f"{name}_{major}_{m}_{python.machine}" for m in range(minor, oldest - 1, -1)]
    if name == "manylinux":
        tags += [f"manylinux{year}_{python.machine}" for year in ("2014", "2010", "1")]
    flags = ["--python-version", ".".join(map(str, python.version)), "--implementation", "cp"]
    return [*flags, *(part for tag in tags for part in ("--platform", tag))]


def _download(arguments: Sequence[str], to: Path) -> None:
    argv = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--only-binary=:all:", "--dest", str(to), *arguments,
    ]  # fmt: skip
    if subprocess.run(argv, check=False, stdout=sys.stderr).returncode:
        raise ImagesError(
            "the wheels could not be downloaded (pip says why above). Without an index: put wheels,"
            f" pip's too, into {WHEELHOUSE.relative_to(HERE.parent.parent)}"
        )


def _stamp(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest() + "\n"
