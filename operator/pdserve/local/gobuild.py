"""Builds a program from Go modules into the cache, once, with somebody watching.

Builds take minutes, so a line every few seconds says what is built, why and for how long.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pdserve.local import store
from pdserve.local.commands import CommandError, follow
from pdserve.local.errors import LocalError, Progress, sparsely

MIN_GO = (1, 21)
"""From this version on, Go fetches by itself the newer toolchain that a module asks for."""

MAX_SECONDS = 3600.0
"""For one attempt: a module proxy that hangs must not hang everything for ever."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to build. `module` is a folder with go.mod, or None for `go install pkg@version`."""

    name: str
    version: str
    what: str
    typical_seconds: int
    module: Path | None
    package: str
    ldflags: str
    tags: str = ""
    links: tuple[str, ...] = ()
    """Names under which a multi-call binary is also found."""

    @property
    def cache_name(self) -> str:
        """Folder name in the cache: differs whenever the result could differ."""
        digest = hashlib.sha256()
        digest.update("\0".join((self.package, self.ldflags, self.tags)).encode())
        for name in ("go.mod", "go.sum", "main.go"):
            if self.module is not None and (file := self.module / name).is_file():
                digest.update(file.read_bytes())
        return f"{self.name}-{self.version}-{platform.machine()}-{digest.hexdigest()[:12]}"


def cached(recipe: Recipe, cache: Path, programs: Iterable[str]) -> Path | None:
    """Folder with `programs`, if `recipe` was built before."""
    held = store.holds(cache, recipe.cache_name, programs)
    return cache / recipe.cache_name / "bin" if held else None


def build(recipe: Recipe, cache: Path, progress: Progress) -> Path:
    """Make `recipe` unless it is in the cache; returns the folder with the program.

    Raises:
        LocalError: Go is missing or too old, or the build failed (with the log's end).
    """

    def fill(scratch: Path) -> None:
        _run(recipe, _go(), scratch, progress)
        for link in recipe.links:
            (scratch / "bin" / link).symlink_to(recipe.name)

    return store.make(cache, recipe.cache_name, (recipe.name,), fill, progress)


def _run(recipe: Recipe, go: str, scratch: Path, progress: Progress) -> None:
    out = scratch / "bin"
    # The linker drops what debuggers read (-s -w): not to make it saved Helm 15 % of CPU time.
    flags = ["-trimpath", "-gcflags=all=-dwarf=false", f"-ldflags={recipe.ldflags}"]
    if recipe.tags:
        flags.append(f"-tags={recipe.tags}")
    # The compiler and linker are short-lived: memory they need not give back saves some time.
    # GOTOOLCHAIN=local, as Go's container images set it, would refuse what `MIN_GO` counts on.
    env = {"GOGC": "300", **os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "auto"}
    if recipe.module is None:
        argv = [go, "install", *flags, recipe.package]
        env["GOBIN"] = str(out)
    else:
        argv = [go, "build", *flags, "-o", str(out / recipe.name), recipe.package]
    progress(
        f"building {recipe.name} {recipe.version} ({recipe.what}) from Go modules: "
        f"about {_minutes(recipe.typical_seconds)}, once per machine"
    )
    began = time.monotonic()
    still = sparsely(progress)
    for again in (True, False):
        try:
            follow(
                argv,
                scratch / "build.log",
                seconds=MAX_SECONDS,
                cwd=recipe.module or scratch,
                env=env,
                tick=lambda seconds: still(f"building {recipe.name}: {seconds:.0f} s"),
            )
            break
        except CommandError as error:
            if not again:
                raise LocalError(f"building {recipe.name}: {error}") from error
            progress(f"once more, as module proxies fail at times; {error}")
    progress(f"built {recipe.name} in {time.monotonic() - began:.0f} s")


def _minutes(seconds: int) -> str:
    return f"{seconds} s" if seconds < 100 else f"{round(seconds / 60)} min"


def _go() -> str:
    go = shutil.which("go")
    if go is None:
        raise LocalError("Go is not installed (no `go` in PATH)")
    said = subprocess.run([go, "version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"go(\d+)\.(\d+)", said)
    if match is None or (int(match[1]), int(match[2])) < MIN_GO:
        wanted = ".".join(map(str, MIN_GO))
        raise LocalError(f"Go {wanted} or newer is needed; `go version` says {said.strip()!r}")
    return go
