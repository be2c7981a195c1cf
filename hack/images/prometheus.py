"""The Prometheus image of the example: pulled, or made of the program that local clusters run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from hack.images.base import HERE
from hack.images.containers import Containers, ImagesError, say

from localcluster import binaries
from localcluster.errors import LocalError

REPOSITORY = "prom/prometheus"
DOCKERFILE = HERE / "Dockerfile.prometheus"
_PT_INTERP = 3


def ensure(
    engine: Containers,
    base: str,
    log: Path,
    program: Callable[[Callable[[str], None]], Path] = binaries.prometheus,
) -> tuple[str, float]:
    """Have the engine hold `prom/prometheus`; its name, and seconds it took.

    Raises:
        ImagesError: it can be neither pulled nor made.
    """
    name = f"{REPOSITORY}:{binaries.prometheus_tag()}"
    if engine.find(name):
        return name, 0.0
    try:
        engine.pull(name)
    except ImagesError as error:
        say(f"{error}\nmaking it from the Prometheus program of local clusters instead")
    else:
        return name, 0.0
    try:
        found = program(say)
    except LocalError as error:
        raise ImagesError(f"{name}: {error}\nOr leave it out: --no-prometheus") from error
    # What is linked statically needs nothing beside it.
    stand = base if dynamic(found) else "scratch"
    with tempfile.TemporaryDirectory() as scratch:
        context = Path(scratch)
        shutil.copy2(found, context / "prometheus")
        (context / "data").mkdir()
        seconds = engine.build(
            name, context, log, dockerfile=DOCKERFILE,
            arguments={"BASE_IMAGE": stand, "VERSION": binaries.prometheus_tag()},
        )  # fmt: skip
    return name, seconds


def dynamic(program: Path) -> bool:
    """Whether an ELF program asks for a dynamic loader (a PT_INTERP program header).

    Raises:
        ImagesError: the file is not an ELF program.
    """
    with program.open("rb") as file:
        header = file.read(64)
        if header[:4] != b"\x7fELF":
            raise ImagesError(f"{program} is no Linux program")
        wide = header[4] == 2
        order: Literal["little", "big"] = "little" if header[5] == 1 else "big"

        def number(at: int, size: int) -> int:
            return int.from_bytes(header[at : at + size], order)

        table = number(32, 8) if wide else number(28, 4)
        size, count = (number(54, 2), number(56, 2)) if wide else (number(42, 2), number(44, 2))
        for index in range(count):
            file.seek(table + index * size)
            if int.from_bytes(file.read(4), order) == _PT_INTERP:
                return True
    return False
