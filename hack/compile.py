"""Compile the gateway's request path to C extensions, beside its Python sources.

    hack/compile.py DIR    copy pdserve to DIR, with what `COMPILED` names compiled

mypyc takes the same sources and type hints that mypy checks. The Python files stay beside the
extensions, for tracebacks; without extensions they run as they are. Done again only when sources,
Python or mypyc have changed. It needs a C compiler and Python's header files. DIR is deleted first,
and has to be absent, empty, or of an earlier run.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent / "operator"
COMPILED = ("forwarding", "gateway", "http1")
"""Packages of pdserve on the path of a request."""
AWAITS = "awaits while it handles an exception; compiled, that exception stays the thread's"
CLOSURES = "has local functions; compiled, they and what they use wait for the collector"
INTERPRETED = {
    "http1/callbacks.py": "a cast, of what compiled code gives to asyncio",
    "http1/stalls.py": "async generators are not among what mypyc can compile",
    "gateway/fan_out.py": CLOSURES,
    "gateway/route_source.py": CLOSURES,
    "http1/connect.py": AWAITS,
    "http1/pages.py": CLOSURES,
    "gateway/process.py": "shows its docstring, which compiled modules do not have",
}
"""Modules of these packages that stay as they are, and why."""
STAMP = ".compiled"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog="example: hack/compile.py build/compiled, then PYTHONPATH=build/compiled",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to put the package")
    parser.add_argument(
        "--optimize", default="2", choices="0123", help="of the C compiler (default: %(default)s)"
    )
    given = parser.parse_args()
    folder: Path = given.folder.resolve()
    stamp = f"{fingerprint()} {given.optimize}"
    marked = folder / STAMP
    if marked.exists() and marked.read_text() == stamp:
        return 0
    if problem := cannot() or foreign(folder):
        print(f"compile: {problem}", file=sys.stderr)
        return 1
    print(f"compiling {len(modules())} modules (once, about a minute)", file=sys.stderr, flush=True)
    started = time.monotonic()
    lay_out(folder)
    status = translate(folder, given.optimize)
    if status == 0:
        marked.write_text(stamp)
        print(f"compiled in {time.monotonic() - started:.0f} s", file=sys.stderr)
    return status


def modules() -> list[str]:
    """What is compiled, as paths from `SOURCES`, in order."""
    found = (p for name in COMPILED for p in (SOURCES / "pdserve" / name).rglob("*.py"))
    names = (p.relative_to(SOURCES / "pdserve").as_posix() for p in found)
    left = (
        n for n in names if n not in INTERPRETED and not n.endswith(("__init__.py", "__main__.py"))
    )
    return sorted(f"pdserve/{name}" for name in left)


def fingerprint() -> str:
    """Changes with the sources, this file, Python and mypyc."""
    from mypy.version import __version__

    digest = hashlib.sha256(f"{sys.version} {sys.platform} {__version__}".encode())
    for path in (Path(__file__), *sorted((SOURCES / "pdserve").rglob("*.py"))):
        digest.update(path.as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def cannot() -> str:
    """Why nothing can be compiled here, and what to do; empty when it can."""
    compiler = os.environ.get("CC", "gcc").split()[0]
    if shutil.which(compiler) is None:
        return f"no C compiler ({compiler}): install gcc, or set CC"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return f"no Python.h in {sysconfig.get_path('include')}: install python3-dev"
    return ""


def foreign(folder: Path) -> str:
    """Why `folder` must not be deleted: something else is in it; empty when it may be."""
    if not folder.exists() or (folder / STAMP).is_file():
        return ""
    if folder.is_dir() and not any(folder.iterdir()):
        return ""
    return f"{folder} is not of an earlier run: name a folder that is absent or empty"


def lay_out(folder: Path) -> None:
    """A fresh copy of the package in `folder`, which is deleted first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / STAMP).touch()
    shutil.copytree(
        SOURCES / "pdserve",
        folder / "pdserve",
        ignore=shutil.ignore_patterns("__pycache__", "*.so"),
    )


def translate(folder: Path, optimize: str) -> int:
    """Translate, and compile in place; returns an exit status. The output is shown on failure."""
    program = (
        "import sys\n"
        "from mypyc.build import mypycify\n"
        "from setuptools import setup\n"
        "made = mypycify(sys.argv[2:], opt_level=sys.argv[1], multi_file=True)\n"
        "setup(name='pdserve', ext_modules=made, script_args=['build_ext', '--inplace'])\n"
    )
    command = [sys.executable, "-c", program, optimize]
    with _settings(folder):
        done = subprocess.run(
            [*command, "--config-file=compile.ini", *modules()],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
    shutil.rmtree(folder / "build", ignore_errors=True)
    if done.returncode:
        print(done.stdout[-8000:], done.stderr[-8000:], sep="\n", file=sys.stderr)
    return done.returncode


@contextlib.contextmanager
def _settings(folder: Path) -> Iterator[None]:
    """mypy's settings for the time of the build: those of pyproject.toml check, these compile."""
    path = folder / "compile.ini"
    path.write_text(
        "[mypy]\nnamespace_packages = False\n"
        "[mypy-kubernetes.*,httptools.*,uvloop.*]\n"
        "ignore_missing_imports = True\nfollow_imports = skip\n"
    )
    try:
        yield
    finally:
        path.unlink()


if __name__ == "__main__":
    sys.exit(main())
