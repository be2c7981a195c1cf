"""Which base the images stand on, and where their wheels come from.

Order, first that works: 1. the base asked for; 2. the default base of the Dockerfile, here already;
3. a base made from Debian packages before; 4. the default base, pulled; 5. a base made from Debian
packages now (`debian-base.sh`).
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from hack.images.containers import Image, ImagesError, say

HERE = Path(__file__).resolve().parent
SCRIPT = HERE / "debian-base.sh"
OLDEST_PYTHON = (3, 11)

Wheels = Literal["index", "wheelhouse"]

PROBE = """
import glob, importlib.util, json, platform, sys, urllib.request
def reaches(url):
    try:
        return bool(urllib.request.urlopen(url, timeout=5).read(1))
    except Exception:
        return False
pip = importlib.util.find_spec("pip") is not None
libc, version = platform.libc_ver()
if not libc and glob.glob("/lib/ld-musl-*"):
    libc, version = "musl", "1.2"
print(json.dumps({
    "python": sys.version_info[:2], "machine": platform.machine(),
    "libc": libc, "libc_version": version,
    "index": pip and reaches(sys.argv[1]),
}))
"""
INDEX = "https://pypi.org/simple"

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
"""Architectures of images, as their Pythons and wheels call them."""


class Engine(Protocol):
    """What is asked of `containers.Containers` here."""

    def find(self, name: str) -> Image | None: ...
    def pull(self, name: str) -> None: ...
    def run_python(self, image: str, script: str, *arguments: str) -> str: ...


@dataclass(frozen=True, slots=True)
class Python:
    """The Python of a base image, and whether containers of it reach a package index by pip."""

    version: tuple[int, int]
    machine: str
    libc: str
    libc_version: str
    index: bool


def default_base(dockerfile: Path) -> str:
    """The default of the Dockerfile's BASE_IMAGE.

    Raises:
        ImagesError: the Dockerfile has none.
    """
    found = re.search(r"^ARG BASE_IMAGE=(\S+)$", dockerfile.read_text(), re.MULTILINE)
    if found is None:
        raise ImagesError(f"{dockerfile}: no default of BASE_IMAGE")
    return found[1]


def choose(engine: Engine, asked: str | None, default: str, debian: Callable[[bool], str]) -> str:
    """The base image, which the engine then has.

    Args:
        engine: where images are.
        asked: BASE_IMAGE, if the user set it.
        default: the base taken without it.
        debian: name of the base from Debian packages; made first if called with True.

    Raises:
        ImagesError: the base asked for cannot be had, or none can be made.
    """
    if asked:
        if engine.find(asked) is None:
            engine.pull(asked)
        return asked
    if engine.find(default):
        return default
    made = debian(False)
    if engine.find(made):
        say(f"base: {made} (made before, where {default} could not be pulled)")
        return made
    try:
        engine.pull(default)
    except ImagesError as error:
        say(f"{error}\nmaking a base from Debian packages instead")
        return debian(True)
    return default


def debian_base(tool: str, architecture: str = "") -> Callable[[bool], str]:
    """`choose`'s `debian`, for this container tool and, if given, another architecture."""

    def name(make: bool) -> str:
        argv = [str(SCRIPT), *([] if make else ["--name"])]
        done = subprocess.run(
            ["env", f"TOOL={tool}", f"ARCH={architecture}", *argv],
            stdout=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise ImagesError(f"{SCRIPT.name} failed (its reason is above)")
        return done.stdout.strip()

    return name


def elsewhere(base: str, native: Callable[[bool], str], foreign: Callable[[bool], str]) -> str:
    """The base of another architecture that corresponds to `base`, this machine's.

    A published image has one name for all. One made of Debian packages, as `native` names it, is
    made once more, by `foreign`.
    """
    return foreign(True) if base == native(False) else base


def inspect(engine: Engine, base: str, index: str = INDEX) -> Python:
    """Ask the Python of a base image about itself.

    Raises:
        ImagesError: it has none, or one too old.
    """
    found = json.loads(engine.run_python(base, PROBE, index))
    version = (int(found["python"][0]), int(found["python"][1]))
    if version < OLDEST_PYTHON:
        have, need = (".".join(map(str, v)) for v in (version, OLDEST_PYTHON))
        raise ImagesError(
            f"{base} has Python {have}, pdserve needs {need} or newer: set BASE_IMAGE to another"
            " image, or SUITE to a newer release of Debian"
        )
    return Python(version, found["machine"], found["libc"], found["libc_version"], found["index"])
