"""The gateway's request path as C extensions, for the Python of a base image.

They are compiled by this machine (hack/compile.py), so its Python must be the base's: version,
architecture and C library. Elsewhere the image runs the same code interpreted, and a line says so.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

from hack.images.base import Python
from hack.images.containers import say
from hack.images.install import SOURCES, sources_digest

FOLDER = "hack/images/compiled"


def fill(python: Python, root: Path) -> bool:
    """Put extensions for `python` where the Dockerfile takes them from; False: there are none."""
    into = root / FOLDER
    for old in [p for p in into.iterdir() if p.name != ".gitignore"]:
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    why = differs(python, here())
    if not why:
        made = root / "build" / "compiled"
        program = [sys.executable, str(root / "hack" / "compile.py"), str(made), "--optimize", "3"]
        if subprocess.run(program, check=False).returncode:
            why = "they could not be compiled (the reason is above)"
        for path in () if why else made.rglob("*.so"):
            target = into / path.relative_to(made)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        if not why:
            (into / SOURCES).write_text(sources_digest(made))
    if why:
        say(f"gateway without C extensions, about 0.5 of the requests per core: {why}")
    return not why


def here() -> Python:
    """The Python that runs this."""
    libc, version = platform.libc_ver()
    return Python(sys.version_info[:2], platform.machine(), libc, version, index=False)


def differs(base: Python, ours: Python) -> str:
    """Why what `ours` compiles does not run in `base`, and what to do; empty where it does."""
    wanted = "{}.{}".format(*base.version)
    if ours.version != base.version:
        return (
            f"Python here is {'{}.{}'.format(*ours.version)}, in the base {wanted}; "
            f"PYTHON=python{wanted} or another BASE_IMAGE makes them equal"
        )
    if (ours.machine, ours.libc) != (base.machine, base.libc):
        return (
            f"this machine is {ours.machine} with {ours.libc or 'no known C library'}, the base "
            f"{base.machine} with {base.libc}; build on a machine of that kind"
        )
    if _numbers(ours.libc_version) > _numbers(base.libc_version):
        return (
            f"{ours.libc} here is {ours.libc_version}, newer than {base.libc_version} of the base; "
            "a newer BASE_IMAGE has one that will do"
        )
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
