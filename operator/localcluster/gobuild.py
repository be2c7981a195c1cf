"""Builds a program from Go modules into the cache, once, and shows its progress.

Builds take minutes, so a line every few seconds says what is built, why and for how long. Go's own
build cache and modules (gigabytes) are in a temporary folder. The builds of one run share it, and
it is removed after them, unless the user named a place for it or asked to keep it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from localcluster import store
from localcluster.commands import CommandError, follow
from localcluster.errors import LocalError, Progress, sparsely

MIN_GO = (1, 21)
"""From this version on, Go fetches by itself the newer toolchain that a module asks for."""

MAX_SECONDS = 3600.0
"""For one attempt: a module proxy that hangs must not hang everything for ever."""

ENV_KEEP = "PDSERVE_KEEP_GO_CACHE"
"""Not empty: builds use Go's own caches in the user's home, and leave there what they made."""

_CACHES = ("GOCACHE", "GOMODCACHE", "GOTMPDIR")


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


class Builds:
    """The builds of one run; `close` removes the Go caches that they share.

    Args:
        cache: where programs are kept; the Go caches are there too while they exist.
        progress: told what is built and for how long.
    """

    def __init__(self, cache: Path, progress: Progress) -> None:
        self._cache = cache
        self._progress = progress
        self._scratch = ExitStack()
        self._caches: dict[str, str] | None = None

    def build(self, recipe: Recipe) -> Path:
        """Make `recipe` unless it is in the cache; returns the folder with the program.

        Raises:
            LocalError: Go is missing or too old, or the build failed (with the log's end).
        """

        def fill(scratch: Path) -> None:
            go = _go()
            _run(recipe, go, scratch, self._temporary(go), self._progress)
            for link in recipe.links:
                (scratch / "bin" / link).symlink_to(recipe.name)

        return store.make(self._cache, recipe.cache_name, (recipe.name,), fill, self._progress)

    def close(self) -> None:
        """Remove what Go kept. The next build would begin anew."""
        if self._caches and self._caches.keys() != {"GOTMPDIR"}:
            self._progress("removing what Go kept of the build")
        self._caches = None
        self._scratch.close()

    def _temporary(self, go: str) -> dict[str, str]:
        """The environment that leads Go to caches of this run; made by the first build."""
        if self._caches is None:
            free = [] if os.environ.get(ENV_KEEP) else sorted(set(_CACHES) - _chosen(go))
            self._caches = {}
            if free:
                folder = self._scratch.enter_context(store.scratch_folder(self._cache, "go"))
                for name in free:
                    (folder / name).mkdir()
                    self._caches[name] = str(folder / name)
        return self._caches


def _chosen(go: str) -> set[str]:
    """Which of Go's caches the user has named a place for, in the environment or by `go env -w`."""
    file = subprocess.run([go, "env", "GOENV"], capture_output=True, text=True, check=False).stdout
    try:
        lines = Path(file.strip()).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    written = {name for name, _, value in (line.partition("=") for line in lines) if value}
    return {name for name in _CACHES if os.environ.get(name) or name in written}


def _run(
    recipe: Recipe, go: str, scratch: Path, caches: Mapping[str, str], progress: Progress
) -> None:
    out = scratch / "bin"
    # The linker drops what debuggers read (-s -w): not to make it saved Helm 15 % of CPU time.
    flags = ["-trimpath", "-gcflags=all=-dwarf=false", f"-ldflags={recipe.ldflags}"]
    if recipe.tags:
        flags.append(f"-tags={recipe.tags}")
    # The compiler and linker are short-lived: memory they need not give back saves some time.
    # GOTOOLCHAIN=local, as Go's container images set it, would refuse what `MIN_GO` counts on.
    env = {"GOGC": "300", **os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "auto", **caches}
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
